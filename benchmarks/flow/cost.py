"""What measuring bits costs, against the floor of its operations and beside other Glows.

    OMP_NUM_THREADS=1 python -m benchmarks flow-cost [--repeats 5] [--flows FLOW ...]

For each flow (default: the shipped ones), log-likelihood of 50 images and its gradient to them, one thread, in one
interleaved run with normflows' Glow (Stimper et al. 2023) of the same size and the published Glow (K = 6, hidden 512).
Times are CPU-seconds, the least of the rounds: others work on the same machine. Prints Markdown and writes it to
`--out`.

The floor: multiplications and additions (counted from the operations that PyTorch dispatches) at the rate of this
machine's best matrix product or convolution, measured in the same run; and the bytes that all other operations read and
write at its copying rate. Fused kernels may go below the second; nothing goes below the first.
"""

from __future__ import annotations

import functools
import math
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.flow import published
from benchmarks.harness import options, quiet
from condense.errors import FlowError
from condense.flow.bits import bits_per_dim
from condense.flow.precision import at_precision
from condense.flow.store import load_flow, shipped_flows
from condense.pixels import to_float

BATCH = 50
STEPS = 8  # of normflows' Glow of as many parameters, whose width is then what makes them as many

Model = Callable[[Tensor], Tensor]


class Operations(TorchDispatchMode):
    """Counts what is dispatched inside it: FLOPs by element type, and bytes of all that is no product."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: dict[torch.dtype, float] = defaultdict(float)
        self.bytes = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, out)) if isinstance(leaf, Tensor)]
        if func._overloadpacket in flop_registry:
            count = flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
            self.flops[tensors[0].dtype] += count
        elif not func.is_view:
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return out


def main() -> None:
    parser = options(__doc__, rows=False)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("cost.md"), help="the page that it writes")
    parser.add_argument("--flows", nargs="+", metavar="FLOW", help="default: the shipped ones")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, in each of which all take turns")
    arguments = parser.parse_args()
    quiet()
    warnings.filterwarnings("ignore", message="torch.lu")  # normflows calls it
    text = [f"# Cost\n\n    OMP_NUM_THREADS=1 python -m benchmarks flow-cost --repeats {arguments.repeats}"]
    for name in arguments.flows or shipped_flows():
        text.append(report(name, arguments.repeats))
        print(text[-1], flush=True)
    arguments.out.write_text("\n\n".join(text) + "\n")


def report(name: str, rounds: int) -> str:
    """Markdown tables of one flow."""
    flow = load_flow(name)
    own, shape, size = f"`{Path(name).stem}`", flow.shape, count(flow)
    models: dict[str, tuple[Model, int]] = {own: (bits_of(flow), size)}
    refused = ""
    try:
        models[f"{own}, bits_precision=bfloat16"] = (bits_of(at_precision(flow, "bfloat16")), size)
    except FlowError as error:
        refused = f"\n\nNot measured in bfloat16: {error.problem}."
    for label, beside in normflows_glows(flow.description, size).items():
        models[label] = (functools.partial(nats, beside), count(beside))
    paper = frozen(published.Glow(shape, steps=6, hidden=512))
    models["published Glow, K = 6, hidden 512"] = (lambda x: -paper(x - 0.5), count(paper))
    draws = torch.Generator().manual_seed(0)
    images = to_float(torch.randint(256, (BATCH, *shape), dtype=torch.uint8, generator=draws))
    seconds = timed({label: model for label, (model, _) in models.items()}, images, rounds)
    lines = [
        f"## {own} (digest {flow.digest[:12]})",
        "",
        "| batch 50, one thread | parameters | forward, images / CPU-s | with gradient | the flow is faster by |",
        "|---|---|---|---|---|",
    ]
    for label, (_, parameters) in models.items():
        ahead, both = seconds[label]
        faster = f"{both / seconds[own][1]:.1f}"
        lines.append(f"| {label} | {parameters / 1e6:.2f} M | {BATCH / ahead:.0f} | {BATCH / both:.0f} | {faster} |")
    return "\n".join(lines) + refused + "\n\n" + floor(own, models[own][0], images, seconds[own])


def bits_of(density: Any) -> Model:
    return lambda x: bits_per_dim(density, x)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def nats(glow: Any, images: Tensor) -> Tensor:
    """What normflows' Glow says of images in [0, 1]."""
    return -glow.log_prob(images - 0.5, None)


def frozen(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


def normflows_glows(description: Any, parameters: int) -> dict[str, Any]:
    """normflows' Glow as the library gives it: with the flow's K and hidden, and with K = 8 and as many parameters."""
    try:
        import normflows
    except ImportError:
        sys.exit(
            "normflows is not installed; it is measured beside the flows: pip install 'condense-service[benchmarks]'"
        )

    channels, side = description.channels, description.image_size

    def build(steps: int, hidden: int) -> Any:
        flows, merges, bases = [], [], []
        for number in range(3):
            wide = channels * 2 ** (4 - number)
            blocks = [normflows.flows.GlowBlock(wide, hidden) for _ in range(steps)]
            flows.append([*blocks, normflows.flows.Squeeze()])
            merges += [normflows.flows.Merge()] if number else []
            kept = wide // 2 if number else wide
            bases.append(normflows.distributions.GlowBase((kept, side >> 3 - number, side >> 3 - number)))
        return frozen(normflows.MultiscaleFlow(bases, flows, merges, class_cond=False))

    def off(hidden: int) -> int:
        wide = [channels * 2 ** (4 - number) for number in range(3)]
        own = STEPS * sum(9 * w // 2 * hidden + hidden * hidden + 9 * hidden * w + 2 * w * w for w in wide)
        return abs(own - parameters)

    hidden = min(range(8, 512, 8), key=off)
    same = {"steps": description.steps, "hidden": description.hidden}
    return {
        f"normflows' Glow, the same K = {same['steps']} and hidden {same['hidden']}": build(**same),
        f"normflows' Glow, as many parameters: K = {STEPS}, hidden {hidden}": build(STEPS, hidden),
    }


def timed(models: dict[str, Model], images: Tensor, rounds: int) -> dict[str, tuple[float, float]]:
    """The least CPU-seconds of (forward, forward and gradient) over the rounds, models taking turns."""
    best: dict[str, tuple[float, float]] = {}
    for number in range(rounds + 1):
        for label, model in models.items():
            found = (
                clocked(lambda model=model: forward(model, images)),
                clocked(lambda model=model: gradient(model, images)),
            )
            if number:  # the first is to warm up
                before = best.get(label, (math.inf, math.inf))
                best[label] = (min(before[0], found[0]), min(before[1], found[1]))
    return best


def forward(model: Model, images: Tensor) -> None:
    with torch.no_grad():
        model(images)


def gradient(model: Model, images: Tensor) -> None:
    x = images.clone().requires_grad_()
    torch.autograd.grad(model(x).sum(), x)


def clocked(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def floor(label: str, model: Model, images: Tensor, seconds: tuple[float, float]) -> str:
    """What the operations need at the least, and how far above it the measured time is."""
    rates, bandwidth = ceilings()
    columns = (
        "GFLOP | at the ceiling | bytes of the rest | at copying rate | measured | times the products' floor | both"
    )
    lines = [f"| {label}, an image | {columns} |", "|---|---|---|---|---|---|---|---|"]
    for name, run, spent in (("forward", forward, seconds[0]), ("with gradient", gradient, seconds[1])):
        with Operations() as counted:
            run(model, images)
        products = sum(amount / rates[dtype] for dtype, amount in counted.flops.items())
        moved = counted.bytes / bandwidth
        cells = (
            f"{sum(counted.flops.values()) / BATCH / 1e9:.3f}",
            f"{1e3 * products / BATCH:.2f} ms",
            f"{counted.bytes / BATCH / 1e6:.1f} MB",
            f"{1e3 * moved / BATCH:.2f} ms",
            f"{1e3 * spent / BATCH:.2f} ms",
            f"{spent / products:.1f}",
            f"{spent / (products + moved):.1f}",
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    shown = ", ".join(f"{str(dtype).removeprefix('torch.')} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in rates.items())
    lines += ["", f"Ceilings of this run: {shown}; copying {bandwidth / 1e9:.1f} GB/s."]
    return "\n".join(lines)


def ceilings() -> tuple[dict[torch.dtype, float], float]:
    """FLOP/s of the best of a large matrix product and a 3x3 convolution, by element type; bytes/s of a large copy."""
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(1024, 1024).to(dtype)
        x = torch.randn(BATCH, 96, 16, 16).to(dtype, memory_format=torch.channels_last)
        w = torch.randn(96, 96, 3, 3).to(dtype, memory_format=torch.channels_last)
        product = least(lambda a=a: a @ a)
        convolution = least(lambda x=x, w=w: F.conv2d(x, w, padding=1))
        rates[dtype] = max(2 * 1024**3 / product, 2 * x.numel() * 96 * 9 / convolution)
    source, target = torch.ones(1 << 26), torch.empty(1 << 26)
    return rates, 2 * source.numel() * 4 / least(lambda: target.copy_(source))


def least(run: Callable[[], object], rounds: int = 8) -> float:
    run()
    return min(clocked(run) for _ in range(rounds))


if __name__ == "__main__":
    main()
