"""The benchmarks: ``mtlfast bench``.

Every measurement is a :class:`~mtlfast.bench.case.Case` of a suite. The runner lets all contestants
of a case take turns; a case turns the samples into rows; a report prints and writes the rows.
Nothing here is imported by the rest of the package.
"""
