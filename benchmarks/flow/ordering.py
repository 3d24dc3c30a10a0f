"""Does the yardstick order images as the eye does, and what does it cost?

    python benchmarks/flow/ordering.py DATA_DIR [FLOW ...]

DATA_DIR holds mnist_train.parquet, fashion_mnist_train.parquet and cifar10_train.parquet with their _test files beside
them. Prints, for each flow (default: the shipped ones): bits per dimension of constant < MNIST < Fashion-MNIST <
natural < noise; of natural images under growing Gaussian blur; rounding errors; and images per second on one thread.
Exits with 1 where an order does not hold.
"""

from __future__ import annotations

import copy
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from condense.flow.bits import bits_per_dim, measure
from condense.flow.glow import Flow
from condense.flow.mixture import to_channels
from condense.flow.store import load_flow, shipped_flows
from condense.pixels import dequantise, to_float, to_uint8
from condense.seeding import generator
from condense.sources import DataConfig, open_source

IMAGES = 1000
SIGMAS = (0.0, 0.4, 0.6, 1.0)
BATCH = 50


def main(data: Path, flows: list[str]) -> int:
    torch.set_num_threads(1)
    stored = {name: test_images(data, name) for name in ("mnist", "fashion_mnist", "cifar10")}
    held = True
    for name in flows or shipped_flows():
        flow = load_flow(name)
        print(f"\n## {Path(name).stem} (digest {flow.digest[:12]})\n")
        held &= order(flow, stored)
        held &= blur(flow, stored["cifar10"])
        numerics(flow, stored["cifar10"])
        speed(flow, stored["cifar10"])
    return 0 if held else 1


def test_images(data: Path, name: str) -> Tensor:
    """The first images of a test split: uint8 (IMAGES, C, 32, 32)."""
    return open_source(f"parquet:{data}/{name}_train.parquet", DataConfig(), seed=0).load("test").images[:IMAGES]


def of_channels(images: Tensor, channels: int) -> Tensor:
    """Grey images copied to three channels for a colour flow, colour ones by luminance for a grey flow."""
    return images.expand(-1, 3, -1, -1) if channels == 3 else to_channels(images, 1, "benchmark")


def order(flow: Flow, stored: dict[str, Tensor]) -> bool:
    draws = generator(0, "benchmark")
    shape = (IMAGES, *flow.shape)
    grey = torch.randint(256, (IMAGES, 1, 1, 1), generator=draws, dtype=torch.uint8)
    colour = torch.randint(256, (IMAGES, flow.shape[0], 1, 1), generator=draws, dtype=torch.uint8)
    sets = {
        "constant grey": grey.expand(shape),
        "MNIST": of_channels(stored["mnist"], flow.shape[0]),
        "Fashion-MNIST": of_channels(stored["fashion_mnist"], flow.shape[0]),
        "CIFAR-10": of_channels(stored["cifar10"], flow.shape[0]),
        "noise": torch.randint(256, shape, generator=draws, dtype=torch.uint8),
    }
    unordered = {"constant colour": colour.expand(shape)} if flow.shape[0] == 3 else {}
    print("| images | bits per dim | least | most | PNG bits per dim |\n|---|---|---|---|---|")
    means = []
    for label, images in (unordered | sets).items():
        report = measure(flow, images, seed=0)
        bits = report.bits_per_dim
        if label in sets:
            means.append(report.mean)
        print(
            f"| {label} | {report.mean:.3f} | {bits.min():.3f} | {bits.max():.3f} | {png(report.png_bytes, flow):.3f} |"
        )
    return means == sorted(means)


def blur(flow: Flow, natural: Tensor) -> bool:
    images = of_channels(natural, flow.shape[0])
    print("\n| Gaussian blur, sigma | bits per dim | PNG bits per dim |\n|---|---|---|")
    means = []
    for sigma in SIGMAS:
        blurred = to_uint8(gaussian_blur(to_float(images), [9, 9], [sigma, sigma])) if sigma else images
        report = measure(flow, blurred, seed=0)
        means.append(report.mean)
        print(f"| {sigma} | {report.mean:.3f} | {png(report.png_bytes, flow):.3f} |")
    return means == sorted(means, reverse=True)


def png(sizes: Tensor, flow: Flow) -> float:
    channels, height, width = flow.shape
    return float(sizes.double().mean()) * 8 / (channels * height * width)


@torch.no_grad()
def numerics(flow: Flow, natural: Tensor) -> None:
    """Largest errors over 50 natural images and 50 of noise."""
    images = of_channels(natural, flow.shape[0])[:BATCH]
    noise = torch.randint(256, images.shape, generator=generator(1, "benchmark"), dtype=torch.uint8)
    images = to_float(torch.cat([images, noise]))
    exact = copy.deepcopy(flow).double()
    bits = bits_per_dim(exact, images.double())
    x = dequantise(images)
    round_trip = (flow.decode(flow.encode(x)[0]) - x).abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        low = bits_per_dim(flow, images)
    print("\n| largest error | |\n|---|---|")
    print(f"| round trip, in units of one 8-bit level | {round_trip * 256:.1e} |")
    print(f"| bits per dim, float32 against float64 | {(bits_per_dim(flow, images) - bits).abs().max():.1e} |")
    print(f"| bits per dim, bfloat16 coupling networks against float64 | {(low - bits).abs().max():.1e} |")


def speed(flow: Flow, natural: Tensor, rounds: int = 12) -> None:
    """Images per CPU-second, the best of `rounds` batches after one to warm up."""
    images = to_float(of_channels(natural, flow.shape[0])[:BATCH])

    def forward() -> None:
        with torch.no_grad():
            bits_per_dim(flow, images)

    def with_gradient() -> None:
        x = images.clone().requires_grad_()
        torch.autograd.grad(bits_per_dim(flow, x).sum(), x)

    print("\n| log-likelihood, batch 50 | images per CPU-second |\n|---|---|")
    for label, run in (("forward", forward), ("forward and gradient to the image", with_gradient)):
        run()
        seconds = []
        for _ in range(rounds):
            started = time.process_time()
            run()
            seconds.append(time.process_time() - started)
        print(f"| {label} | {BATCH / min(seconds):.0f} |")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
