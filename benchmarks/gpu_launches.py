"""How many kernels the parts of an outer step launch on a GPU.

    python -m benchmarks gpu-launches

Every operation that PyTorch hands to the device is one, but for views and empty tensors; a few are more (a norm's
gradient is three), so the truth is some more. Ten classes of 3x32x32, ConvNet of width 128 and depth 3. A step is bound
by its launches where they take longer, at some 6 us each, than what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.engine import REAL, SHAPES, WIDTH, engine
from benchmarks.harness import options
from condense.learners.networks import NetworkConfig

NOTHING = {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class Launches(TorchDispatchMode):
    """Counts what is launched on the meta device."""

    count = 0

    def __torch_dispatch__(
        self, called: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = called(*args, **(kwargs or {}))
        if not called.is_view and called.overloadpacket.__name__ not in NOTHING:
            self.count += any(isinstance(whole, torch.Tensor) and whole.is_meta for whole in tree_leaves(found))
        return found


def launched(run: Callable[[], object]) -> int:
    """By a call."""
    with Launches() as launches:
        run()
    return launches.count


def counted(
    objective: str,
    ipc: int,
    *,
    precision: str = "float32",
    depth: int = 3,
    shape: tuple[int, int, int] = SHAPES["cifar"],
    classes: int = 10,
    real_batch: int = REAL,
) -> dict[str, int]:
    """By part: drawing a network, the target of a match step, an image update, a step of training the network."""
    made = engine(
        shape,
        ipc,
        classes=classes,
        real=real_batch,
        network=NetworkConfig(width=WIDTH, depth=depth),
        precision=precision,
        device="meta",
        objective=objective,
    )
    (replica,) = made.replicas
    targets: list[Any] = []
    found = {
        "network": launched(lambda: replica.learner.start_(0, 0)),
        "target": launched(lambda: targets.append(replica.targets(0, replica.draw_transforms(0)))),
        "update": launched(lambda: made._update_images(list(zip(*targets, strict=True)), 0)),
    }
    images = made.synthetic.images().detach()
    batches = -(-classes * ipc // replica.matching.learner_batch)
    return found | {"learner": launched(lambda: replica.learner.train_on_synthetic_(images, 0, 1)) // batches}


def main() -> None:
    options(__doc__, rows=False).parse_args()
    print("| objective | precision | network | target | image update | learner's step |")
    print("|---|---|---|---|---|---|")
    for objective in ("gradient", "distribution"):
        for precision in ("float32", "bfloat16"):
            parts = counted(objective, 10, precision=precision)
            print(f"| {objective} | {precision} | {' | '.join(map(str, parts.values()))} |")


if __name__ == "__main__":
    main()
