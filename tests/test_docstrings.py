"""Examples in docstrings run and give what they say."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import pkgutil
from pathlib import Path

import pytest

import rlmix


def modules_with_examples() -> list[str]:
    """Return the modules whose text holds an example."""
    found = []
    for module in pkgutil.walk_packages(rlmix.__path__, "rlmix."):
        spec = importlib.util.find_spec(module.name)
        assert spec is not None
        assert spec.origin is not None
        if ">>> " in Path(spec.origin).read_text(encoding="utf-8"):
            found.append(module.name)
    return found


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_a_docstring_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An example is copied before anything else of a docstring is read."""
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_the_front_door_has_an_example() -> None:
    """If the search found nothing, the test above would not exist."""
    assert "rlmix._mix" in modules_with_examples()
