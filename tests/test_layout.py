"""The folders are what the configuration says they are."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rlmix

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

TARGETS = ("demo", "test", "lint", "type", "bench", "docs")


@pytest.fixture(scope="module")
def settings(project: Path) -> dict[str, Any]:
    """Return pyproject.toml."""
    parsed: dict[str, Any] = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    return parsed


def test_every_path_that_pyproject_names_exists(settings: dict[str, Any], project: Path) -> None:
    """A configuration that names a missing folder checks nothing, in silence."""
    tool = settings["tool"]
    named = [settings["project"]["readme"], *settings["project"]["license-files"]]
    named += tool["pytest"]["ini_options"]["testpaths"]
    named += tool["coverage"]["run"]["source"]
    named += [pattern.removesuffix("/**") for pattern in tool["ruff"]["lint"]["per-file-ignores"]]
    named += [f"{package}/{file}" for package, files in tool["setuptools"]["package-data"].items() for file in files]
    missing = [name for name in named if not (project / name).exists()]
    assert not missing


def test_patterns_of_ruff_match_files(settings: dict[str, Any], project: Path) -> None:
    """A pattern that matches nothing relaxes or checks nothing."""
    for pattern in settings["tool"]["ruff"]["lint"]["per-file-ignores"]:
        assert any((project / pattern.removesuffix("/**")).rglob("*.py")), pattern


@pytest.mark.parametrize("folder", ["envs", "agents"])
def test_the_linked_folders_are_relative_links(folder: str, project: Path) -> None:
    """An absolute link, or a copy, would leave another checkout's code in the package."""
    link = project / "rlmix" / folder
    assert link.is_symlink()
    assert os.readlink(link) == f"../{folder}"  # noqa: PTH115  (Path.readlink normalises)


def test_versions_agree(settings: dict[str, Any], project: Path) -> None:
    """A release whose changelog, package and metadata name different versions cannot be found again."""
    changelog = (project / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[?(\d+\.\d+\.\d+)", changelog, re.MULTILINE)
    assert newest is not None
    assert newest[1] == settings["project"]["version"] == rlmix.__version__


def test_the_installed_metadata_is_this_version(settings: dict[str, Any]) -> None:
    """A stale installation would make every other test speak of something else."""
    assert importlib.metadata.version("rlmix") == settings["project"]["version"]


def test_the_tests_hold_no_packages(project: Path) -> None:
    """`tests/envs/__init__.py` would turn `import envs` into the tests."""
    assert not list((project / "tests").rglob("__init__.py"))


def test_folders_of_tests_mirror_folders_of_code(project: Path) -> None:
    """Whoever changes a module must know without searching where its test stands."""
    folders = [
        path.relative_to(project / "tests")
        for path in (project / "tests").rglob("*")
        if path.is_dir() and any(path.glob("test_*.py"))
    ]
    beside = {Path(), *map(Path, ("benchmarks", "configs", "examples"))}
    astray = [folder for folder in folders if folder not in beside and not (project / "rlmix" / folder).is_dir()]
    assert not astray


def test_make_help_names_every_target(project: Path) -> None:
    """The words of the Makefile are the whole process; one that help leaves out is not known to exist."""
    makefile = (project / "Makefile").read_text(encoding="utf-8")
    for target in TARGETS:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
        assert f"make {target} " in makefile, target


def test_scripts_are_valid_shell(project: Path) -> None:
    """A script that only fails on a fresh machine is found by a stranger."""
    for shell, name in (("sh", "scripts/install.sh"), ("bash", ".ci/run")):
        subprocess.run([shell, "-n", name], cwd=project, check=True)
        assert os.access(project / name, os.X_OK), name


def test_ci_runs_make_and_ends_with_the_tests(project: Path) -> None:
    """CI must do nothing that a person could not, and its last line is the tests' summary."""
    lines = (project / ".ci" / "run").read_text(encoding="utf-8").split("\n\n")[-1].splitlines()
    assert all(line.startswith("make ") for line in lines)
    assert lines[-1] == "make test"
