"""Instance norm, ReLU and average pool of a ConvNet's block in one pass on a CPU, and its whole first block: kernels.c,
built on first use.

Built with the machine's own C compiler for the machine's own processor, into the user's cache folder; where there is
no compiler, `available` is False and callers take PyTorch's operations, which give the same within rounding.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from condense.errors import CapacityError

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
MOST_CHANNELS = 1024  # as in kernels.c: sums of one image's channels stand on the stack
FEW_CHANNELS = 2  # of images, up to which `first_block` is faster than PyTorch's convolution and `norm_relu_pool`
_SUFFIX = {torch.float32: "float", torch.bfloat16: "bfloat"}


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The built kernels, or None without a compiler that builds them."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None or platform.system() != "Linux":
        return None
    processor = Path("/proc/cpuinfo").read_text().partition("\n\n")[0] if Path("/proc/cpuinfo").exists() else ""
    flags = next((line for line in processor.splitlines() if line.startswith("flags")), platform.machine())
    identity = hashlib.sha256(SOURCE.read_bytes() + " ".join((*FLAGS, compiler, flags)).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "condense"
    built = folder / f"kernels-{identity}.so"
    try:
        if not built.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as beside:
                fresh = Path(beside) / "kernels.so"
                command = [compiler, *FLAGS, "-o", str(fresh), str(SOURCE), "-lm"]
                subprocess.run(command, check=True, capture_output=True, timeout=300)  # noqa: S603
                fresh.replace(built)
        return ctypes.CDLL(str(built))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        log.info("without its own kernels, PyTorch's are used: %s", error)
        return None


def available(images: Tensor, precision: torch.dtype, channels: int) -> bool:
    """Whether the kernels take activations of `precision` and so many channels where the images are."""
    fits = images.device.type == "cpu" and precision in _SUFFIX and channels <= MOST_CHANNELS
    return fits and _library() is not None


def norm_relu_pool(activation: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """avg_pool2d(relu(instance_norm(z) * gamma + beta), 2), and what its gradient needs.

    Args:
        activation: z (N, C, H, W), channels last, float32 or bfloat16.
        gamma: (C,).
        beta: (C,).

    Returns:
        (N, C, H // 2, W // 2), channels last; mean and 1 / deviation (N, C) of each image's channels, float32.
    """
    assert activation.is_contiguous(memory_format=torch.channels_last)
    count, channels, height, width = activation.shape
    gamma, beta = gamma.float(), beta.float()
    pooled = torch.empty(
        (count, channels, height // 2, width // 2), dtype=activation.dtype, memory_format=torch.channels_last
    )
    mean, rstd = torch.empty((2, count, channels)).unbind()
    _call("forward", activation, gamma, beta, ctypes.c_float(eps), count, height, width, channels, pooled, mean, rstd)
    return pooled, mean, rstd


def norm_relu_pool_gradient(
    activation: Tensor, gradient: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients at z, gamma and beta of `norm_relu_pool`, given that at its result; no graph."""
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    gamma, beta = gamma.float(), beta.float()
    to_activation, to_gamma, to_beta = torch.empty_like(activation), torch.zeros_like(gamma), torch.zeros_like(beta)
    count, channels, height, width = activation.shape
    sizes = count, height, width, channels
    _call("backward", activation, gradient, gamma, beta, mean, rstd, *sizes, to_activation, to_gamma, to_beta)
    return to_activation, to_gamma, to_beta


def norm_relu_pool_twice(
    activation: Tensor, gradient: Tensor, v: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients at `gradient` and at z of sum(v * to_z), to_z as of `norm_relu_pool_gradient`; float32."""
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    v = v.contiguous(memory_format=torch.channels_last)
    gamma, beta = gamma.float(), beta.float()
    found = torch.empty_like(gradient), torch.empty_like(activation)
    count, channels, height, width = activation.shape
    _call("twice", activation, gradient, v, gamma, beta, mean, rstd, count, height, width, channels, *found)
    return found


def first_block(
    images: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`norm_relu_pool` of a 3x3 convolution, padded by one, of images with few channels.

    A library's convolution is made for many channels: at one channel the weight gradient alone was 40 % of a step.

    Args:
        images: (N, I, H, W), channels last, float32 or bfloat16.
        weight: (O, I, 3, 3). bias, gamma, beta: (O,).

    Returns:
        As `norm_relu_pool`.
    """
    count, inputs, height, width = images.shape
    outputs = len(weight)
    bias, gamma, beta = bias.float(), gamma.float(), beta.float()
    pooled = torch.empty(
        (count, outputs, height // 2, width // 2), dtype=images.dtype, memory_format=torch.channels_last
    )
    mean, rstd = torch.empty((2, count, outputs)).unbind()
    sizes = count, height, width, inputs, outputs
    by_tap = _by_tap(weight)
    _call("thin_forward", _last(images), by_tap, bias, gamma, beta, ctypes.c_float(eps), *sizes, pooled, mean, rstd)
    return pooled, mean, rstd


def first_block_gradient(
    images: Tensor,
    gradient: Tensor,
    weight: Tensor,
    bias: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients at weight, gamma and beta of `first_block`, float32, given that at its result; no graph.

    That at the bias is zero, since the norm takes the mean away.
    """
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    count, inputs, height, width = images.shape
    by_tap = _by_tap(weight)
    bias, gamma, beta = bias.float(), gamma.float(), beta.float()
    found = torch.zeros_like(by_tap), torch.zeros_like(gamma), torch.zeros_like(beta)
    sizes = count, height, width, inputs, len(weight)
    _call("thin_backward", _last(images), gradient, by_tap, bias, gamma, beta, mean, rstd, *sizes, *found)
    return found[0].permute(3, 2, 0, 1), found[1], found[2]


def _by_tap(weight: Tensor) -> Tensor:
    """(O, I, 3, 3) to (3, 3, I, O) float32, contiguous."""
    return weight.permute(2, 3, 1, 0).float().contiguous()


def _last(images: Tensor) -> Tensor:
    """(N, I, H, W) as contiguous (N, H, W, I)."""
    return images.permute(0, 2, 3, 1).contiguous()


def _call(name: str, activation: Tensor, *arguments: Tensor | int | ctypes.c_float) -> None:
    library = _library()
    assert library is not None
    passed = [
        ctypes.c_void_p(value.data_ptr())
        if isinstance(value, Tensor)
        else ctypes.c_int64(value)
        if isinstance(value, int)
        else value
        for value in (activation, *arguments)
    ]
    function = getattr(library, f"{name}_{_SUFFIX[activation.dtype]}")
    function.restype = ctypes.c_int if name.startswith("thin") else None
    if function(*passed) == 0:
        raise CapacityError("no memory for one image's activations", "lower network.width")
