"""scripts/install.sh, with a Python that only writes down what it is asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Answers as the real one where that is quick, makes copies of itself for environments, and installs nothing.
RECORDER = f"""#!/bin/sh
echo "$*" >>"$RECORD"
case "$*" in
    "-m venv --clear "*) rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
    "-m pip install "*) exit "$PIP_RESULT" ;;
    "-c import torch, torchvision") exit "$IMPORT_RESULT" ;;
    "-m pip --version") ;;
    *) exec {sys.executable} "$@" ;;
esac
"""


class Checkout:
    """A folder with what the script needs."""

    def __init__(self, folder: Path, project: Path) -> None:
        self.folder = folder
        (folder / "scripts").mkdir()
        shutil.copy(project / "scripts" / "install.sh", folder / "scripts")
        shutil.copy(project / "pyproject.toml", folder)
        self.python = folder / "recorder"
        self.python.write_text(RECORDER)
        self.python.chmod(0o755)
        self.record = folder / "record.txt"

    def install(self, *, pip: int = 0, imports: int = 0, python: str | None = None) -> tuple[int, str, list[str]]:
        """Run the script; return its status, its output and what Python was asked for."""
        self.record.write_text("")
        settings = {"PYTHON": python or str(self.python), "RECORD": str(self.record)}
        result = subprocess.run(
            ["sh", "scripts/install.sh", "dev"],
            cwd=self.folder,
            env={**os.environ, **settings, "PIP_RESULT": str(pip), "IMPORT_RESULT": str(imports)},
            capture_output=True,
            text=True,
            check=False,
        )
        asked = [line for line in self.record.read_text().splitlines() if "install" in line or "venv" in line]
        return result.returncode, result.stdout + result.stderr, [line for line in asked if line.startswith("-m")]


@pytest.fixture
def checkout(tmp_path: Path, project: Path) -> Checkout:
    return Checkout(tmp_path, project)


def test_the_first_run_makes_the_environment_and_says_so(checkout: Checkout) -> None:
    """Minutes of silence look like a program that hangs."""
    status, output, asked = checkout.install()
    assert status == 0, output
    assert [line.split()[1:3] for line in asked] == [["venv", "--clear"], ["pip", "install"]]
    assert "GB" in output
    assert "minutes" in output


def test_the_second_run_does_nothing(checkout: Checkout) -> None:
    """`make test` after `make demo` must start at once, also without a network."""
    checkout.install()
    assert checkout.install() == (0, "", [])


def test_changed_requirements_are_installed_into_the_same_environment(checkout: Checkout) -> None:
    """A pull that adds a dependency must not end in an ImportError, nor in another download of everything."""
    checkout.install()
    with (checkout.folder / "pyproject.toml").open("a") as file:
        file.write("\n# changed\n")
    status, _, asked = checkout.install()
    assert status == 0
    assert [line.split()[1] for line in asked] == ["pip"]
    assert checkout.install() == (0, "", [])


def test_an_installation_that_failed_is_made_anew(checkout: Checkout) -> None:
    """What an interrupted pip leaves behind looks installed and is not."""
    status, output, _ = checkout.install(pip=1)
    assert status != 0
    assert "pip failed" in output
    status, _, asked = checkout.install()
    assert status == 0
    assert asked[0].startswith("-m venv --clear")


def test_torch_and_torchvision_of_different_builds_are_named(checkout: Checkout) -> None:
    """They install together and fail on import, with a message that names neither the cause nor the cure."""
    status, output, _ = checkout.install(imports=1)
    assert status != 0
    assert "PIP_FIND_LINKS" in output
    assert not list((checkout.folder / ".venv").glob("installed-*"))


def test_a_moved_checkout_is_installed_again(checkout: Checkout, tmp_path: Path) -> None:
    """An editable installation points to the folder where it was made."""
    checkout.install()
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    shutil.copytree(tmp_path, moved)
    checkout.folder, checkout.record = moved, moved / "record.txt"
    status, _, asked = checkout.install()
    assert status == 0
    assert asked


def test_no_usable_python_is_said_with_the_way_out(checkout: Checkout) -> None:
    """`python3: command not found` from inside a Makefile helps nobody."""
    status, output, _ = checkout.install(python="/nonexistent/python")
    assert status != 0
    assert "Install Python 3.10 or newer" in output
    assert "make PYTHON=" in output
