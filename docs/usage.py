"""How the pages' examples call a method whose signature does not say it; read by generate.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """What differs from ``mtlfast.Method()`` and one ``backward`` a step."""

    arguments: str = ""  # of the constructor
    wrapper: str = ""  # further arguments of MultiTaskOptimizer
    after: str = ""  # a line after the step


USAGE = {
    "cagrad": Usage(arguments="c=0.4"),
    "constant": Usage(arguments="[1.0, 0.5, 2.0]"),
    "cosmos": Usage(arguments="penalty=1.0, preference=[0.5, 0.3, 0.2]"),
    "crmogm": Usage(arguments="mtlfast.CAGrad()"),
    "dtp": Usage(after="optimizer.weighting.observe([0.9, 0.7, 0.8])  # whenever KPIs are known"),
    "dwa": Usage(after="optimizer.weighting.end_epoch()  # at the end of each epoch"),
    "famo": Usage(after="optimizer.weighting.observe(model_losses(batch))  # the same batch again"),
    "gradnorm": Usage(wrapper="gramian_params=last_layer.parameters()"),
    "lbtw": Usage(after="optimizer.weighting.end_epoch()  # at the end of each epoch"),
    "scalarization": Usage(arguments="lambda losses: losses.logsumexp(0)"),
    "stch": Usage(arguments="mu=0.1"),
    "trimmed_mean": Usage(arguments="trim_number=1"),
}
