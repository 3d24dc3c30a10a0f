"""Whether bits are to be believed: order, degradations, compressors, a second flow, where they mislead.

    OMP_NUM_THREADS=1 python -m benchmarks flow-validation --data FOLDER [--second DIR] [--flows FLOW ...]

FOLDER holds {mnist,fashion_mnist,cifar10}_{train,test}.parquet and cinic10_natural.parquet. `--second` holds a flow
of each name that was trained independently (another seed, another architecture): without it, what needs it is left out.
Six sets are condensed with each flow and kept in `--work`. Writes validation.md and validation.png to `--out`,
and exits with 1 where kinds of images are out of order or blur does not lower the bits. About five CPU-minutes.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.flow import validation_images as made
from benchmarks.flow import validation_sets
from benchmarks.harness import options
from condense.flow.bits import Density, bits_per_dim, measure
from condense.flow.store import load_flow, shipped_flows
from condense.pixels import round_straight_through, to_float, to_uint8
from condense.seeding import generator

HERE = Path(__file__).parent
NAMES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "cinic10": "CINIC-10"}


class Yardstick:
    """A shipped flow, and the second one of its shape where there is one."""

    def __init__(self, name: str, second: Path | None) -> None:
        self.path, self.name, self.flow = name, Path(name).stem, load_flow(name)
        path = None if second is None else second / f"{self.name}.safetensors"
        self.second: Density | None = load_flow(path) if path is not None and path.exists() else None
        self.channels = self.flow.shape[0]
        self.dims = self.flow.shape[0] * self.flow.shape[1] * self.flow.shape[2]
        self.held: list[tuple[str, bool]] = []

    def bits(self, images: Tensor) -> Tensor:
        """Bits per dim (N,) of uint8 images."""
        return measure(self.flow, images, seed=0, draws=1).bits_per_dim

    def other(self, images: Tensor) -> Tensor | None:
        """The same under the second flow."""
        return None if self.second is None else measure(self.second, images, seed=0).bits_per_dim

    def coarse(self, images: Tensor, depth: float) -> float:
        """Mean bits per dim of images on 2^depth levels as images of that depth: noise as wide as their level.

        E_u[depth - log2 p((k + u) / 2^depth - 1/2) / D],  k in 0 .. 2^depth - 1
        """
        level = (to_float(images) * (2**depth - 1)).round()
        x = (level + torch.rand(level.shape, generator=generator(0, "coarse"))) / 2**depth - 0.5
        with torch.no_grad():
            nats = torch.cat([self.flow.log_prob(part) for part in x.split(100)])
        return depth - float(nats.mean()) / (math.log(2) * self.dims)


def main() -> int:
    parser = options(__doc__, rows=False, data=True)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of validation.md and validation.png")
    parser.add_argument("--flows", nargs="+", metavar="FLOW", help="default: the shipped ones")
    parser.add_argument("--second", type=Path, help="folder of independently trained flows of the same names")
    parser.add_argument("--work", type=Path, default=Path("validation-work"), help="condensed sets, made once")
    parser.add_argument("--images", type=int, default=100, help="of each source")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text: list[str] = []
    figures = {}
    held: list[tuple[str, bool]] = []
    for name in arguments.flows or shipped_flows():
        yardstick = Yardstick(name, arguments.second)
        second = "none" if yardstick.second is None else yardstick.second.digest[:12]
        text.append(f"## `{yardstick.name}` (digest {yardstick.flow.digest[:12]}; second flow: {second})")
        real = made.real(arguments.data, yardstick.channels, arguments.images)
        figure: dict[str, object] = {}
        for part in (order, degradations, compressors, condensed, misleading, numerics):
            text.extend(part(yardstick, real, figure, arguments))
        figures[yardstick.name] = figure
        held += [(f"{yardstick.name}: {what}", holds) for what, holds in yardstick.held]
    body = "\n\n".join(["# Validation of the measure", made.COMMAND, *text]) + "\n"
    (arguments.out / "validation.md").write_text(body)
    made.draw(figures, arguments.out / "validation.png")
    print(body)
    failed = [what for what, holds in held if not holds]
    print(f"{len(held)} claims, {len(failed)} do not hold" + "".join(f"\n- {what}" for what in failed))
    return 1 if failed else 0


def order(yardstick: Yardstick, real: dict[str, Tensor], figure: dict[str, object], _: object) -> Iterator[str]:
    """constant < MNIST < Fashion-MNIST < natural < noise."""
    count = len(real["cifar10"])
    sets = {"constant": made.constant(count, yardstick.channels)}
    sets |= {NAMES[key]: real[key] for key in ("mnist", "fashion_mnist", "cifar10", "cinic10")}
    sets["noise"] = made.noise(count, yardstick.channels)
    rows, means = [], {}
    for name, images in sets.items():
        bits = yardstick.bits(images)
        means[name] = float(bits.mean())
        other = yardstick.other(images)
        rows.append(
            (name, bits.mean(), bits.min(), bits.max(), None if other is None else other.mean(), made.png(images))
        )
    figure["order"] = means
    kept = [means[name] for name in ("constant", "MNIST", "Fashion-MNIST", "CIFAR-10", "noise")]
    right = kept == sorted(kept) and means["Fashion-MNIST"] < means["CINIC-10"] < means["noise"]
    yardstick.held.append(("constant < MNIST < Fashion-MNIST < natural < noise", right))
    yield made.table(("images", "bits per dim", "least", "most", "second flow", "PNG bits per dim"), rows)
    yield f"Constant < MNIST < Fashion-MNIST < natural (both) < noise: {'holds' if right else 'does not hold'}."


def degradations(yardstick: Yardstick, real: dict[str, Tensor], figure: dict[str, object], _: object) -> Iterator[str]:
    """Bits must fall with blur, with stronger JPEG compression and with fewer levels, on natural and on clothes."""
    curves: dict[str, tuple[list[str], list[float], list[float]]] = {}
    sources = ("cifar10", "fashion_mnist") if yardstick.channels == 1 else ("cifar10",)
    for source in sources:
        images = real[source]
        for label, values, change in made.DEGRADATIONS:
            shown = ["as it is" if value is None else f"{value:g}" for value in values]
            changed = [images if value is None else change(images, value) for value in values]
            bits = [float(yardstick.bits(one).mean()) for one in changed]
            png = [float(made.png(one)) for one in changed]
            second = [None if (other := yardstick.other(one)) is None else other.mean() for one in changed]
            curves[f"{NAMES[source]}, {label}"] = (shown, bits, png)
            rows = [list(row) for row in zip(shown, bits, second, png, strict=True)]
            columns = [f"{NAMES[source]}, {label}", "bits per dim", "second flow", "PNG bits per dim"]
            verdict = falling(bits, png)
            if "bits a pixel" in label:
                coarse = [yardstick.coarse(one, value or 8) for one, value in zip(changed, values, strict=True)]
                columns.append("as images of so many bits")
                for row, value in zip(rows, coarse, strict=True):
                    row.append(value)
                verdict += f"; as images of so many bits: {'falling' if ordered(coarse) else 'not falling'}"
            if source == "cifar10" and "blur" in label:
                yardstick.held.append((f"bits of {NAMES[source]} fall with {label}", ordered(bits)))
            yield made.table(columns, rows)
            yield f"{verdict}."
    figure["curves"] = curves


def ordered(falling: Sequence[float]) -> bool:
    return all(later < earlier for earlier, later in itertools.pairwise(falling))


def falling(bits: Sequence[float], png: Sequence[float]) -> str:
    return "; ".join(
        f"{name} {'fall throughout' if ordered(values) else 'do not fall throughout'}"
        for name, values in (("Bits", bits), ("PNG bits", png))
    )


def compressors(yardstick: Yardstick, real: dict[str, Tensor], figure: dict[str, object], _: object) -> Iterator[str]:
    """Rank correlations with the sizes of lossless files, and with the second flow."""
    wanted = ("mnist", "fashion_mnist", "cifar10") if yardstick.channels == 1 else ("cifar10", "cinic10")
    parts = {NAMES[key]: real[key] for key in wanted}
    parts["all mixed"] = torch.cat(list(parts.values()))
    rows, scatter = [], {}
    for name, images in parts.items():
        bits, png, webp = yardstick.bits(images), made.sizes(images, "PNG"), made.sizes(images, "WEBP")
        second = yardstick.other(images)
        agreed = None if second is None else made.spearman(bits, second)
        rows.append((name, len(images), made.spearman(bits, png), made.spearman(bits, webp), agreed))
        scatter[name] = (bits, png * 8 / yardstick.dims)
    scatter.pop("all mixed")
    figure["scatter"] = scatter
    columns = ("Spearman's rank correlation", "images", "with PNG", "with WebP lossless", "with the second flow")
    yield made.table(columns, rows)


def condensed(
    yardstick: Yardstick, _: dict[str, Tensor], figure: dict[str, object], arguments: argparse.Namespace
) -> Iterator[str]:
    """Whether a second flow ranks whole condensed sets and their controls alike."""
    tiny = validation_sets.make(
        arguments.data, arguments.work, yardstick.channels, yardstick.flow.digest[:12], yardstick.path
    )
    rows, mine, theirs = [], [], []
    for name, images in tiny.items():
        bits, other = yardstick.bits(images).mean(), yardstick.other(images)
        mine.append(bits)
        theirs.append(torch.tensor(0.0) if other is None else other.mean())
        rows.append((name, bits, None if other is None else other.mean(), made.png(images)))
    rows.sort(key=lambda row: float(row[1]))
    yield made.table(("ten images", "bits per dim", "second flow", "PNG bits per dim"), rows)
    if yardstick.second is not None:
        figure["sets"] = (torch.stack(mine), torch.stack(theirs))
        rank = made.spearman(*figure["sets"])  # type: ignore[misc]
        yield f"Rank correlation of the two flows over {len(rows)} sets: {rank:.3f}."


def misleading(yardstick: Yardstick, real: dict[str, Tensor], _: dict[str, object], __: object) -> Iterator[str]:
    """Where bits are not what the eye says."""
    natural, count = real["cifar10"], min(100, len(real["cifar10"]))
    cases = made.odd(yardstick.channels, count, real)
    cases["CIFAR-10"] = natural[:count]
    cases["CIFAR-10, 24 images"] = natural[:24]
    cases["CIFAR-10, these 24 with their bits minimised"] = minimised(yardstick.flow, natural[:24])
    rows = []
    for name, images in cases.items():
        bits, other = yardstick.bits(images), yardstick.other(images)
        second = None if other is None else other.median()
        rows.append((name, bits.median(), bits.max(), second, made.png(images)))
    yield made.table(("images", "bits per dim (median)", "most", "second flow (median)", "PNG bits per dim"), rows)
    if yardstick.channels == 3:
        grey = load_flow("grey32")
        one = made.real_grey(real["cifar10"])
        single = measure(grey, one, seed=0).bits.mean()
        copied = yardstick.bits(one.expand(-1, 3, -1, -1)).mean() * yardstick.dims
        yield (
            f"CIFAR-10 in grey costs {single:.0f} bits an image under `grey32`; copied to three channels, which say "
            f"the same, {copied:.0f} under `{yardstick.name}`: {copied / single:.2f} times as many."
        )


def numerics(yardstick: Yardstick, real: dict[str, Tensor], _: dict[str, object], __: object) -> Iterator[str]:
    """Largest differences of bits per dim from float64, over a few images of each kind, the same noise in all."""
    kinds = {"constant": made.constant(16, yardstick.channels), "noise": made.noise(16, yardstick.channels)}
    kinds |= {NAMES[key]: real[key][:16] for key in ("mnist", "fashion_mnist", "cifar10")}
    kinds |= made.odd(yardstick.channels, 16, real)
    exact = copy.deepcopy(yardstick.flow).double()
    rows = []
    for name, images in kinds.items():
        noise = torch.rand(images.shape, generator=generator(0, "numerics"))
        with torch.no_grad():
            bits = bits_per_dim(exact, to_float(images).double(), noise.double())
            single = bits_per_dim(yardstick.flow, to_float(images), noise)
            with torch.autocast("cpu", torch.bfloat16):
                half = bits_per_dim(yardstick.flow, to_float(images), noise)
        errors = [f"{float((found.double() - bits).abs().max()):.1e}" for found in (single, half)]
        rows.append((name, bits.max(), *errors))
    yield made.table(("images", "most bits per dim", "float32 off by", "bfloat16 off by"), rows)


def minimised(flow: Density, images: Tensor, steps: int = 60) -> Tensor:
    """The images after Adam on their bits alone, with fresh noise and rounding: what the flow prices low."""
    pixels = to_float(images).clone().requires_grad_()
    optimiser = torch.optim.Adam([pixels], lr=0.01, betas=(0.5, 0.99))
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 0.01 * (1 - step / steps)
        optimiser.zero_grad()
        bits_per_dim(flow, round_straight_through(pixels), generator(0, "minimised", step=step)).sum().backward()
        optimiser.step()
        with torch.no_grad():
            pixels.clamp_(0, 1)
    return to_uint8(pixels)


if __name__ == "__main__":
    sys.exit(main())
