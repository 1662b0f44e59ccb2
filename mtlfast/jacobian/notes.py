"""What an optimizer remembers from step to step about its model's graph."""

from __future__ import annotations

from dataclasses import dataclass, field

LONGEST = 64
"""Steps after which a choice is looked at again; the first ones are looked at sooner."""


@dataclass
class Plan:
    """A choice of "auto".

    Attributes:
        engine: its name.
        reason: why this one.
        wait: for how many steps it is good.
        left: how many of them are left.
    """

    engine: str
    reason: str
    wait: int
    left: int


@dataclass
class Notes:
    """Nothing here changes a result.

    Attributes:
        batches: whether ``torch.vmap`` went through the model's graph; None: not tried yet.
        plans: choices of "auto" by the numbers of losses and of parameters.
    """

    batches: bool | None = None
    plans: dict[tuple[int, int], Plan] = field(default_factory=dict)

    def choose(self, key: tuple[int, int], engine: str, reason: str) -> Plan:
        """Remembers a choice; each one that follows holds twice as long."""
        before = self.plans.get(key)
        wait = 1 if before is None else min(2 * before.wait, LONGEST)
        self.plans[key] = Plan(engine, reason, wait, wait)
        return self.plans[key]
