"""Chooses the device, how much it is given at a time, and how exactly it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from condense.errors import ConfigError

# Real images in one pass through a network, all classes together. On a CPU the activations of 40 images of a width-128
# ConvNet stay in the last-level cache: measured 1.2x faster than 640 at once. A GPU is full with 2,560 (ten classes of
# 256), whose activations at 32x32 are some 6 GB, by arithmetic; and its memory does not grow with classes or batch.
CPU_NETWORK_BATCH, GPU_NETWORK_BATCH = 40, 2560

# Images in one pass through a flow and back, on a GPU by their pixels: 1,024 of 32x32, of which the larger shipped flow
# keeps 5 GB, measured on a CPU. Of 50 it keeps 0.25 GB.
CPU_FLOW_BATCH, GPU_FLOW_PIXELS = 50, 1 << 20


def network_batch(device: torch.device) -> int:
    """Returns how many real images pass through a network at a time."""
    return CPU_NETWORK_BATCH if device.type == "cpu" else GPU_NETWORK_BATCH


def flow_batch(images: Tensor) -> int:
    """Returns how many of the images (N, C, H, W) pass through a flow and back at a time."""
    if images.device.type == "cpu":
        return CPU_FLOW_BATCH
    return max(1, GPU_FLOW_PIXELS // (images.shape[2] * images.shape[3]))


def to_device(values: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Returns `values` on `device`.

    A GPU takes them in its order while the program goes on; plain `to` would wait until it is idle.
    """
    return values.to(device, dtype, non_blocking=True)


def forbid_tf32() -> None:
    """Makes a GPU compute float32 in float32 from now on.

    By default PyTorch lets cuDNN's convolutions round to TF32, ten bits of mantissa. By emulation (benchmarks/tf32.py)
    that puts image gradients off by 3 %, those of bits by 4 to 13 %, and single images' bits per dim by up to 0.02: a
    yardstick must not depend on the device. Whoever wants a faster match step sets `matching.precision`.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@contextmanager
def allow_tf32() -> Iterator[None]:
    """Lets convolutions of the enclosed block round to TF32, which is PyTorch's default: users train so too."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def local_device(gpus: float | None = None) -> torch.device:
    """Returns this machine's GPU if it has one, else its CPU. From now on float32 is float32 there.

    Args:
        gpus: `gpus_per_worker` of a run in this process: 0 asks for the CPU, more for a GPU, None for either.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    if gpus and not torch.cuda.is_available():
        raise ConfigError(
            f"gpus_per_worker={gpus:g}, but this machine has no CUDA device that PyTorch can use",
            "leave gpus_per_worker out to compute on the CPU, or install a driver and a PyTorch that fit the GPU",
        )
    forbid_tf32()
    return torch.device("cuda" if torch.cuda.is_available() and gpus != 0 else "cpu")
