"""The programs in examples/ run, at tiny settings, from an empty folder."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlmix.methods.method import AbstractMethod
from rlmix.testing import MethodContract

ROOT = Path(__file__).resolve().parent.parent.parent
ARGUMENTS = {
    "deploy_policy.py": ["uniform", "--epochs", "1"],
    "own_method.py": [],
    "train_agent.py": ["--timesteps", "32", "--actors", "4", "--instances", "2"],
}


def test_every_example_is_tried() -> None:
    """An example that no test runs breaks with the next change."""
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(ARGUMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    """A reader's first contact with the library must not be a traceback."""
    arguments = [sys.executable, str(ROOT / "examples" / name), *ARGUMENTS[name]]
    # Threads of several processes at once only get in each other's way.
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(arguments, cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout


class TestHorizon(MethodContract):
    """The method of examples/own_method.py keeps the contract."""

    @pytest.fixture
    def method(self) -> AbstractMethod:
        spec = importlib.util.spec_from_file_location("own_method", ROOT / "examples" / "own_method.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Dataclasses look their module up while the class is made.
        sys.modules["own_method"] = module
        spec.loader.exec_module(module)
        method: AbstractMethod = module.Horizon(alpha=1.0)
        return method


def test_the_page_about_methods_shows_the_example() -> None:
    """The class stands in two places; it must be the same class."""
    source = (ROOT / "examples" / "own_method.py").read_text(encoding="utf-8")
    shown = source[source.index("@final") : source.index("def main()")].strip()
    assert shown in (ROOT / "docs" / "contributing-a-method.md").read_text(encoding="utf-8")
