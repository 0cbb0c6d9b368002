"""What the tests of the commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

import rlmix
import rlmix.service


def _taken() -> dict[str, ModuleType]:
    """Take the modules of the service out of those that are imported."""
    names = [name for name in sys.modules if name == "rlmix.service" or name.startswith("rlmix.service.")]
    return {name: sys.modules.pop(name) for name in names}


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Return a function that hides installed packages, as if the extra `serve` were not there."""
    found, package = _taken(), rlmix.service

    def hidden(*names: str) -> None:
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)

    yield hidden
    # A module that was imported meanwhile would be an attribute of a package that no other test sees.
    _taken()
    sys.modules.update(found)
    rlmix.service = package
