"""``mtlfast demo``: trains a job with several methods and seeds, and shows what came out."""

from mtlfast.demo.run import UsageError, run

__all__ = ["UsageError", "run"]
