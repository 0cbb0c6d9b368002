"""The command line as a whole."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest
import typer

import rlmix
from rlmix.cli.main import EXIT_CODE, app, main
from rlmix.errors import InputError


def run(arguments: Sequence[str]) -> int:
    """Run the command line in this process and return its exit code."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


def commands() -> list[list[str]]:
    """Return every command, those of groups too."""

    def walk(group: typer.core.TyperGroup, path: list[str]) -> list[list[str]]:
        found = []
        for name, command in group.commands.items():
            inner = isinstance(command, typer.core.TyperGroup)
            found += walk(command, [*path, name]) if inner else [[*path, name]]
        return found

    return walk(typer.main.get_command(app), [])


def test_all_commands_are_there() -> None:
    """A command that is written but not put in cannot be found."""
    assert {" ".join(command) for command in commands()} >= {
        "demo", "agent train", "agent evaluate", "train", "gallery", "policy show",
    }  # fmt: skip


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_explains_itself_with_examples(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A list of options does not tell how to begin."""
    assert run([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Examples" in text
    assert f"rlmix {' '.join(command)}" in text


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    """It is the first thing asked for in a bug report."""
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == rlmix.__version__


def test_an_error_of_the_package_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback buries what is wrong; brackets in it are text, not markup; nothing is broken into lines."""

    def fail(**_: object) -> None:
        raise InputError("`images` must be [B, C, H, W], got [3]. " + "word " * 60)

    monkeypatch.setattr("rlmix.cli.main.app", fail)
    assert run(["train"]) == EXIT_CODE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Error: `images` must be [B, C, H, W], got [3]. word")
    assert captured.err.strip().count("\n") == 0


def test_other_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug must show where it is."""

    def fail(**_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("rlmix.cli.main.app", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        main([])


def test_help_imports_nothing_heavy() -> None:
    """Help must come at once; what is heavy is imported by the command that needs it."""
    program = (
        "import sys\n"
        "from rlmix.cli.main import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit:\n"
        "    heavy = {'matplotlib', 'tensorboard', 'torchvision', 'gymnasium', 'stable_baselines3', 'sklearn', 'cv2',"
        " 'pydantic'}\n"
        "    sys.exit(repr(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
