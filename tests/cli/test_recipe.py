"""`rlmix agent recipe`."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from rlmix.agents import recipe
from rlmix.cli.main import main
from rlmix.training.config import TrainConfig
from rlmix.training.loop import train

STUDY = """
training: {data: digits, model: mlp, limit: 60, epochs: 1, batch_size: 25, device: cpu}
methods: [none, uniform-cheap]
noises: [0.0, 0.4]
seeds: [0]
"""


def run(*arguments: str | Path) -> int:
    """Run the command in this process and return its exit code."""
    with pytest.raises(SystemExit) as stopped:
        main(["agent", "recipe", *map(str, arguments)])
    return int(stopped.value.code or 0)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY, encoding="utf-8")
    return path


def test_after_ctrl_c_the_printed_command_goes_on(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command must be exact: it is run here as it was printed, with the changes that were made, and finishes."""
    out = tmp_path / "my study"

    def interrupted(config: TrainConfig, out: str, *, resume: bool) -> dict[str, Any]:
        if config.noise:
            raise KeyboardInterrupt
        return train(config, out, resume=resume)

    monkeypatch.setattr(recipe, "train", interrupted)
    assert run("--config", config, "--out", out, "--set", "training.lr=0.2") == 130
    printed = re.search(r"To go on: (rlmix agent recipe .*)", capsys.readouterr().err)
    assert printed is not None
    monkeypatch.setattr(recipe, "train", train)
    _, _, _, *again = shlex.split(printed[1])
    assert run(*again, "--json") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    document = json.loads(captured.out)
    assert document == json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert document["study"]["training"]["lr"] == 0.2
    assert document["runs"] == 4
    # Once more: nothing is left to train, and the table is printed.
    assert run("--resume", "--out", out) == 0
    assert "to uniform-cheap" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "to go on with. Give --config FILE"),
        (["--resume"], "to go on with. Give --config FILE"),
        (["--set", "training.epoch=3"], "there is no key `training.epoch`. Did you mean `epochs`?"),
        (["--policy", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_message(
    arguments: list[str], message: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is wrong and how to mend it, and no traceback."""
    given = ["--config", config] if arguments and arguments != ["--resume"] else []
    assert run(*given, *arguments, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
