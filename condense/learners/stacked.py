"""Trains and tests several networks as one, with their parameters stacked along a first dimension."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from condense.learners.networks import Learner


class FirstOrder(nn.Module):
    """Wraps a network where it is trained or tested."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, images: Tensor) -> Tensor:
        return self.learner.first_order(images)


class StackedLearners:
    """Takes the steps of several networks at once, with their parameters stacked along a first dimension; or of one."""

    def __init__(self, networks: Sequence[Learner]) -> None:
        learners = [FirstOrder(network) for network in networks]
        self.count, self._one = len(learners), learners[0]
        self._stacked = dict(self._one.named_parameters()) if self.count == 1 else stack_module_state(learners)[0]
        self._logits = vmap(lambda parameters, images: functional_call(self._one, parameters, (images,)))

    @property
    def parameters(self) -> list[Tensor]:
        """What the optimiser moves."""
        return list(self._stacked.values())

    def logits(self, images: Tensor) -> Tensor:
        """(learners, N, C, H, W) to (learners, N, classes)."""
        if self.count == 1:
            only: Tensor = self._one(images[0])
            return only[None]
        found: Tensor = self._logits(self._stacked, images)
        return found
