"""What tests of Triton kernels share."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def interpreted() -> Iterator[Callable[[str], ModuleType]]:
    """Return what loads a module of kernels as Triton's interpreter runs them, on tensors in ordinary memory.

    Triton decides when a function is defined, its own library of sums, minima and the like included; so those are
    exchanged, and the module is loaded anew, and once more when the test is done.
    """
    language = importlib.import_module("triton.language")
    compiled = importlib.import_module("triton.runtime.jit").JITFunction
    interpreter = importlib.import_module("triton.runtime.interpreter")
    loaded = []

    def load(name: str) -> ModuleType:
        loaded.append(importlib.reload(importlib.import_module(name)))
        return loaded[-1]

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        return function.rewrite()(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        known: dict[Any, Any] = {}
        for module in (language, language.standard):
            for name, value in list(vars(module).items()):
                if isinstance(value, compiled):
                    # A function of several names stays one: the interpreter knows the common sums by their identity.
                    known.setdefault(value, interpreter.InterpretedFunction(value.fn))
                    patch.setattr(module, name, known[value])
        # A function that another one calls would exchange the language's core again, at ten times the cost of what it
        # does, and for good.
        scope = interpreter._patch_lang(language.sum.fn)
        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield load
        scope.restore()
    for module in loaded:
        importlib.reload(module)
