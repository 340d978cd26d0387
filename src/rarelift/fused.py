"""`variance.spread_by` and `variance.take_off` as one Triton kernel each, for GPUs.

Operation by operation, half types are widened, averaged, interpolated, clamped and narrowed again: a dozen kernels a
block, each a pass over the text. On a large model that is most of what a lift costs. Compiled code does not come here:
torch.compile fuses the operations by itself.

The arithmetic is float32, the results agree with `variance` to its rounding, and scale 1 returns z bit for bit.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from typing import Any

import torch
from torch import Tensor

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_TILE = 16384  # elements that one program holds
_MOST = 1024  # tokens up to which a program holds whole columns
_LARGEST = 2**31  # elements: offsets inside a sample are 32 bits


def here(text: Tensor) -> bool:
    """Whether the kernels are for the call under way: on a GPU, eagerly."""
    return text.is_cuda and not torch.compiler.is_compiling() and works()


@functools.cache
def works() -> bool:
    """Whether the kernels can be built here: tried once, and a warning says why not.

    Triton comes with torch for CUDA on Linux, and wants a C compiler.
    """
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        z = torch.zeros(1, 1, 1, device="cuda")
        take_off(z, z, spread_by(z, z, None))
    except Exception as error:  # noqa: BLE001 - whatever Triton, the compiler or the driver raise
        said = (str(error).strip().splitlines() or [""])[0]
        warnings.warn(
            f"Triton cannot build rarelift's kernels ({type(error).__name__}: {said}); the lift does the same without "
            "them, and takes longer",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def takes(*tensors: Tensor) -> bool:
    """Whether the kernels take these texts `[B, L, D]`: of one shape and kind on one GPU, and without gradients."""
    z = tensors[0]
    return all(
        type(x) is Tensor
        and x.device == z.device
        and x.dtype is z.dtype
        and x.shape == z.shape
        and (x.stride(2) == 1 or x.shape[2] == 1)
        and not x.requires_grad
        for x in tensors
    ) and (z.dtype in _DTYPES and 0 < z.numel() < _LARGEST)


def spread_by(z: Tensor, scale: Tensor, share: Tensor | None) -> Tensor:
    """As `variance.spread_by`.

    Args:
        z: `[B, L, D]`, which `takes` accepts.
        scale: `[B or 1, L or 1, 1]`, float32.
        share: `[B, 1, L]`, float32, or None.
    """
    from . import _triton

    batch, length, width = z.shape
    out = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    rows = max(1 << (min(length, _MOST) - 1).bit_length(), 16)
    columns = min(max(_TILE // rows, 16), 128)
    _launch(
        _triton.spread,
        (-(-width // columns), batch),
        *(z, out, scale, scale if share is None else share),
        *(length, width, z.stride(0), z.stride(1)),
        *(scale.stride(0) if len(scale) > 1 else 0, scale.stride(1) if scale.shape[1] > 1 else 0),
        *((0, 0) if share is None else (share.stride(0), share.stride(2))),
        rows=rows,
        columns=columns,
        weighted=share is not None,
        held=length <= rows,
        limit=_limit(z.dtype),
    )
    return out


def take_off(output: Tensor, z: Tensor, lifted: Tensor) -> Tensor:
    """As `variance.take_off` with all of it taken off, of three texts that `takes` accepts together.

    For a `carry` between 0 and 1 the operations of `variance` run, as they do without a GPU.

    Writes into `output`, which the block has just made, and returns it: in a block that keeps text and image in one
    tensor, a text of its own would be a second one in memory. A tensor that shows one number in several places is
    left alone.
    """
    from . import _triton

    batch, length, width = output.shape
    back = output if 0 not in output.stride() else torch.empty(output.shape, dtype=output.dtype, device=output.device)
    block = min(1 << (width - 1).bit_length(), 4096)
    _launch(
        _triton.take_off,
        (batch * length, -(-width // block)),
        *(output, z, lifted, back),
        *(length, width, output.stride(0), output.stride(1)),
        *(z.stride(0), z.stride(1), lifted.stride(0), lifted.stride(1), back.stride(0), back.stride(1)),
        block=block,
        limit=_limit(output.dtype),
    )
    return back


def _limit(dtype: torch.dtype) -> float:
    """Where a half type saturates; 0 where nothing does."""
    return 0.0 if dtype is torch.float32 else torch.finfo(dtype).max


def _launch(kernel: Any, grid: tuple[int, ...], *arguments: object, **constants: object) -> None:
    with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]  # Triton launches on the current one
        kernel[grid](*arguments, num_warps=4, **constants)
