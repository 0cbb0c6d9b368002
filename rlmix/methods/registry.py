"""The table of methods. To add one: its file, its test, and its line here."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from rlmix.errors import UnknownNameError, nearest
from rlmix.methods.attentivemix import AttentiveMix
from rlmix.methods.comixup import CoMixup
from rlmix.methods.cutmix import CutMix
from rlmix.methods.fmix import FMix
from rlmix.methods.grafting import Grafting
from rlmix.methods.gridmix import GridMix
from rlmix.methods.guidedmixup import GuidedMixup
from rlmix.methods.method import AbstractMethod
from rlmix.methods.mixup import Mixup
from rlmix.methods.none import NoMix
from rlmix.methods.puzzlemix import PuzzleMix
from rlmix.methods.resizemix import ResizeMix
from rlmix.methods.rmix import RMix
from rlmix.methods.saliencymix import SaliencyMix
from rlmix.methods.smoothmix import SmoothMix
from rlmix.methods.uniform import Uniform

METHODS: dict[str, type[AbstractMethod]] = {
    method.name: method
    for method in (
        NoMix,
        Mixup,
        CutMix,
        ResizeMix,
        FMix,
        GridMix,
        SmoothMix,
        SaliencyMix,
        AttentiveMix,
        GuidedMixup,
        PuzzleMix,
        CoMixup,
        RMix,
        Grafting,
        Uniform,
    )
}


def names() -> tuple[str, ...]:
    """Return the names of all methods."""
    return tuple(METHODS)


def parameters(name: str) -> tuple[str, ...]:
    """Return the parameters that a method takes.

    Raises:
        UnknownNameError: no method of this name.
    """
    return _parameters(_find(name))


def get(name: str, **params: Any) -> AbstractMethod:
    """Return a method.

    Args:
        name: one of `names()`.
        params: its parameters; `members` of a mixture may be names or methods, and are all other methods if left out.

    Raises:
        UnknownNameError: no method, or no parameter, of this name; the message has the nearest known one.
        MethodError: a parameter out of its range.
    """
    method = _find(name)
    known = _parameters(method)
    if not params and "members" not in known:
        return _default(method)
    for given in params:
        if given not in known:
            raise UnknownNameError(f"method `{name}` has no parameter `{given}`. {nearest(given, known)}")
    if "members" in known:
        members = params.get("members", [other for other in METHODS if other != name])
        params["members"] = tuple(get(member) if isinstance(member, str) else member for member in members)
    return method(**params)


@functools.cache
def _parameters(method: type[AbstractMethod]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(method))


@functools.cache
def _default(method: type[AbstractMethod]) -> AbstractMethod:
    # Methods are frozen, so that one serves everybody.
    return method()


def _find(name: str) -> type[AbstractMethod]:
    if name not in METHODS:
        raise UnknownNameError(f"there is no mix method `{name}`. {nearest(name, METHODS)}")
    return METHODS[name]
