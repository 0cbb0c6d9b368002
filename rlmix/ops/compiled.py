"""When compiled code for the CPU takes the place of tensor operations.

A tensor operation costs microseconds however few numbers it is about, and each one reads and writes memory anew. With
numba (`pip install rlmix[jit]`) the modules named here do in one pass what takes many of them. They give the bits of
the tensor code, which is the reference, on processors that round a product and a sum once (x86 since AVX2, ARM64). They
run on one thread, and their machine code is kept on disk, so that only the first use on a machine compiles (seconds).
`NUMBA_DISABLE_JIT=1` in the environment leaves everything to the tensor code.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from typing import Any

import torch
from torch import Tensor

_MODULES = ("blend_numba", "boxes_numba", "quantile_numba", "rng_numba", "targets_numba")
# Both are private names of torch: without them nothing tells a plain call from a tracer's, and the tensor code runs.
_modes = getattr(torch._C, "_len_torch_dispatch_stack", None)
_transforms = getattr(getattr(torch._C, "_functorch", None), "maybe_current_level", None)


def serves(*tensors: Tensor | None) -> bool:
    """Say whether compiled code may read these tensors' memory.

    It may where numba is there, all are plain tensors on the CPU that need no gradient, and nobody watches or
    transforms tensor operations (torch.compile, tracers, `torch.func`, dispatch modes): these see the tensor code.
    """
    if torch.compiler.is_compiling() or not _available() or _modes() or _transforms() is not None:  # type: ignore[misc]
        return False
    graded = torch.is_grad_enabled()
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) is not Tensor or not tensor.is_cpu or (graded and tensor.requires_grad):
            return False
    return True


@functools.cache
def _available() -> bool:
    """Say whether compiled code can be used here at all; loads it."""
    if importlib.util.find_spec("numba") is None or _modes is None or _transforms is None:
        return False
    try:
        if importlib.import_module("numba").config.DISABLE_JIT:
            return False
        for name in _MODULES:
            code(name)
    except Exception as error:  # (numba refuses other versions of numpy, or a folder that it may not write to)
        warnings.warn(
            f"numba is installed, but its code cannot be used: {error}. Everything works without it, on the CPU more "
            "slowly. To mend it, install numba anew, or set NUMBA_CACHE_DIR to a folder that can be written to.",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


@functools.cache
def code(name: str) -> Any:
    """Return the module `rlmix.ops.<name>`, which needs numba."""
    # Kept here, since an import statement in a function costs microseconds each time.
    return importlib.import_module(f"rlmix.ops.{name}")


def array(tensor: Tensor) -> Any:
    """Show a tensor as an array of the same memory; a copy where it is not contiguous."""
    # Asked first, since also an operation that has nothing to do costs a microsecond.
    if tensor.requires_grad:
        tensor = tensor.detach()
    return tensor.numpy() if tensor.is_contiguous() else tensor.contiguous().numpy()
