"""`rlmix instances`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from rlmix.cli.main import main
from rlmix.envs.instances import digits_set
from rlmix.envs.reference import CACHE_VARIABLE


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["instances", *map(str, arguments)])
    return int(stopped.value.code or 0)


def test_a_set_is_shown_by_kinds_with_its_ranges(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before hours are spent on a set, its numbers are looked at."""
    assert run("show", project / "configs" / "instances" / "transfer.yaml", "--part", "heldout") == 0
    text = capsys.readouterr().out
    assert "transfer-heldout: 144 instances, 8 decisions each" in text
    for word in ("digits", "shapes 16x16", "lenet", "120, 240"):
        assert word in text


def test_a_set_as_json_holds_every_instance(capsys: pytest.CaptureFixture[str]) -> None:
    """What other programs read must be complete."""
    assert run("show", "digits", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["digest"] == digits_set().digest
    assert [one["id"] for one in document["instances"]] == list(digits_set().ids)


def test_a_table_counts_winners_and_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The summary must be that of the lines in the file, and a second call must train nothing."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    words = ["table", "digits", "--catalogue", "cheap", "--limit", "3", "--json", "--out", tmp_path / "runs.csv"]
    assert run(*words) == 0
    summary = json.loads(capsys.readouterr().out)
    with (tmp_path / "runs.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 5 * 2
    means: dict[str, dict[str, float]] = {}
    for row in rows:
        scores = means.setdefault(row["instance"], {})
        scores[row["entry"]] = scores.get(row["entry"], 0.0) + float(row["score"]) / 2
    winners = [max(scores, key=scores.__getitem__) for scores in means.values()]
    assert summary["wins by entry"] == {name: winners.count(name) for name in summary["wins by entry"]}
    assert sum(summary["wins by entry"].values()) == summary["instances"] == 3
    monkeypatch.setattr("rlmix.envs.block.Block.begin", lambda *_: pytest.fail("it was trained again"))
    assert run(*words) == 0
    assert json.loads(capsys.readouterr().out) == summary
    assert run("table", "digits", "--catalogue", "cheap", "--limit", "3") == 0
    assert "Best fixed: " in capsys.readouterr().out


def test_headroom_is_told_for_each_way_to_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What can be gained is looked at before an agent is trained for it."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    assert run("headroom", "digits", "--limit", "2", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["known"], document["judged"]) == ("digits-train", "digits-validation")
    ways = {way["name"]: way for way in document["ways"]}
    assert list(ways) == ["best fixed", "unbiased oracle", "selector", "selector, label noise known"]
    for way in ways.values():
        assert sum(way["entries"].values()) == 2
        assert way["to_uniform"]["low"] <= way["to_uniform"]["estimate"] <= way["to_uniform"]["high"]
    assert run("headroom", "digits", "--limit", "2", "--watch") == 0
    told = capsys.readouterr().out
    assert "unbiased oracle" in told
    assert "4 of 8 watched" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "digts"], "no instance set and no file `digts`. Did you mean `digits`"),
        (["show", "digits", "--part", "trian"], "no part `trian`. Did you mean `train`"),
        (["table", "digits", "--catalogue", "v9"], "no catalogue `v9`"),
    ],
)
def test_mistakes_are_one_message(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As in every command."""
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
