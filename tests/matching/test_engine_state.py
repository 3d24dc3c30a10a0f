"""What of a set's optimiser goes into checkpoints, and that all workers gather it in one order."""

import torch
from torch import Tensor

from condense.matching.engine_state import gather_state, restore_state_
from condense.synthetic.config import ImagesConfig
from condense.workers.checkpoints import Checkpoint
from condense.workers.collective import Alone
from tests.builders.engines import engine


class Noting(Alone):
    """Keeps what it gathers, in order."""

    def __init__(self) -> None:
        self.gathered: list[Tensor] = []

    def gather(self, tensor: Tensor) -> Tensor:
        self.gathered.append(tensor.clone())
        return tensor


def test_a_restored_worker_gathers_in_the_order_of_every_other_whatever_that_of_its_file() -> None:
    images = ImagesConfig(parameterisation="pyramid")
    made = engine(images=images)
    made.outer_step(0)
    kept = gather_state(made.synthetic, made.optimizer, Alone())
    tensors = kept.tensors
    orders = []
    for names in (list(tensors), list(reversed(tensors))):
        other, noted = engine(images=images), Noting()
        checkpoint = Checkpoint(1, "identity", {name: tensors[name].clone() for name in names}, kept.scalars)
        restore_state_(other.synthetic, other.optimizer, checkpoint)
        found = gather_state(other.synthetic, other.optimizer, noted).tensors
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
        orders.append(noted.gathered)
    assert all(torch.equal(a, b) for a, b in zip(*orders, strict=True))
