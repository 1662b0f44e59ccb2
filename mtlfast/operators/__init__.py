"""The native operations as operators that ``torch.compile`` and ``torch.export`` see.

They are ``torch.ops.mtlfast.gramian``, ``combine``, ``combine_out``, ``graddrop_out``,
``trimmed_mean_out`` and ``solve``, each with a fake kernel. Only tracing meets them: the doors in
:mod:`mtlfast.ops` and :mod:`mtlfast.column_ops` hand over what they are given while a graph is
made, and when the graph runs, its operators call these doors. So an eager call passes no
dispatcher, and the backend is chosen anew at every run. As in eager, nothing is differentiable:
results require no grad.

The operators take the rows of the K tasks one after another, since a schema has no nested lists,
and return the tensors that some task reaches, since it has no None among results.
"""
