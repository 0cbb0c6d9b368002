"""`rlmix bench`."""

from __future__ import annotations

import json

import pytest

from rlmix.cli.main import main


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *arguments])
    return int(stopped.value.code or 0)


def test_every_kind_of_training_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """Who plans a training of an agent wants to know how long it takes here."""
    words = ["env", "--slots", "2", "--steps", "8", "--entries", "none,rmix"]
    assert run(*words, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["model"] for row in rows] == [name for name in ("mlp", "convnet", "lenet", "resnet8") for _ in range(2)]
    assert all(row["steps_per_second"] > 0 for row in rows)
    assert run(*words, "--models", "mlp") == 0
    text = capsys.readouterr().out
    assert "digits 8x8" in text
    assert "lenet" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "mpl"], "no model `mpl` here. Did you mean `mlp`"),
        (["--entries", "cutmx"], "no entry `cutmx`. Did you mean `cutmix-1`"),
        (["--steps", "12"], "multiple of the horizon 8, got 12"),
    ],
)
def test_mistakes_are_one_message(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As in every command."""
    assert run("env", *arguments) == 2
    assert message in capsys.readouterr().err
