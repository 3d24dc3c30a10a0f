"""What a GPU's default rounding of float32 convolutions would do: TF32, emulated on a CPU.

    python -m benchmarks tf32 --data FOLDER

The inputs of every convolution and of its gradient are rounded to TF32's ten bits of mantissa, products and sums are
float32: what PyTorch lets a GPU do unless told otherwise (`forbid_tf32` in condense/workers/devices.py does). Held-out
real images under the shipped flows; image gradients of one match step on generated images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.harness import options
from condense.data.config import DataConfig
from condense.data.sources import open_source
from condense.flow.bits import bits_per_dim
from condense.flow.store import load_flow
from condense.kernels import compiled as kernels
from condense.learners.networks import NetworkConfig, build_network, initialise_
from condense.matching.objectives import OBJECTIVES, build_objective
from condense.pixels import to_float

IMAGES = 100
FLOWS = {"rgb32": "cifar10", "grey32": "fashion_mnist"}
SHAPE, CLASSES, REAL, PER_CLASS = (3, 32, 32), 3, 32, 2


class Rounding(TorchDispatchMode):
    """Rounds what convolutions are given."""

    count = 0

    def __torch_dispatch__(
        self, called: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if called.overloadpacket in (torch.ops.aten.convolution, torch.ops.aten.convolution_backward):
            self.count += 1
            args = [to_tf32(given) if isinstance(given, Tensor) else given for given in args]
        return called(*args, **(kwargs or {}))


def to_tf32(values: Tensor) -> Tensor:
    """float32 of any shape, to the nearest of ten bits of mantissa, ties to even."""
    pattern = values.contiguous().view(torch.int32)
    even = (pattern >> 13) & 1
    return ((pattern + 0xFFF + even) & ~0x1FFF).view(torch.float32)


def both(run: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, float]:
    """(exact values, rounded values, relative error of the gradients) of a run that gives values and a gradient."""
    exact, gradient = run()
    with Rounding() as rounding:
        rounded, rounded_gradient = run()
    assert rounding.count > 0
    return exact, rounded, float((rounded_gradient - gradient).norm() / gradient.norm())


def of_bits(flow: str, data: Path) -> str:
    """A row: bits per dim of held-out images and their gradient."""
    density = load_flow(flow)
    padded = DataConfig(image_size=32)
    split = open_source(f"parquet:{data}/{FLOWS[flow]}_train.parquet", padded, seed=0).load("validation")
    images = to_float(split.images[:IMAGES])
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))

    def run() -> tuple[Tensor, Tensor]:
        leaf = images.clone().requires_grad_()
        bits = bits_per_dim(density, leaf, noise)
        return bits.detach(), torch.autograd.grad(bits.sum(), leaf)[0]

    exact, rounded, gradient = both(run)
    mean, most = float((rounded - exact).mean()), float((rounded - exact).abs().max())
    return f"| bits per dim, {flow} | {100 * gradient:.1f} % | {mean:+.4f}; {most:.3f} |"


def of_images(objective: str) -> str:
    """A row: image gradients of a match step."""
    draws = torch.Generator().manual_seed(1)
    network = initialise_(build_network(NetworkConfig(), SHAPE, CLASSES), draws).requires_grad_(False)
    real = torch.randn((CLASSES, REAL, *SHAPE), generator=draws)
    synthetic = torch.randn((CLASSES, PER_CLASS, *SHAPE), generator=draws)
    compared = build_objective(objective, distance=None, precision=torch.float32)

    def run() -> tuple[Tensor, Tensor]:
        leaf = synthetic.clone().requires_grad_()
        distances = compared(network, real, leaf, torch.arange(CLASSES))
        return distances.detach(), torch.autograd.grad(distances.sum(), leaf)[0]

    return f"| image gradients, {objective} | {100 * both(run)[2]:.1f} % | |"


def main() -> None:
    """Reads the arguments, prints the table."""
    parser = options(__doc__, rows=False, data=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kernels.load_library = lambda: None  # PyTorch's convolutions, which a GPU would compute
    print(f"| | gradient off by (norm) | bits per dim off by: mean; most of {IMAGES} images |\n|---|---|---|")
    for flow in FLOWS:
        print(of_bits(flow, arguments.data), flush=True)
    for objective in OBJECTIVES:
        print(of_images(objective), flush=True)


if __name__ == "__main__":
    main()
