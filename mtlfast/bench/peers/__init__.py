"""The peers: one file each, with all that the suites ask of it.

A peer is compared at three places, at those where it has something:

- ``balances``: K task gradients into empty ``.grad``, as after ``zero_grad``;
- ``steps``: a whole training step;
- ``weights``: the call on a Gramian, or on a Jacobian where it takes nothing else.
"""

from mtlfast.bench.peers.base import Into, Modes, Peer, names, wanted

__all__ = ["Into", "Modes", "Peer", "names", "wanted"]
