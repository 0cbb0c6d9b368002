"""`rlmix demo`."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlmix.cli import demo
from rlmix.cli.main import main
from rlmix.policy.artifact import load


@pytest.mark.slow
def test_the_demo_trains_deploys_compares_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The main job from end to end, with amounts too small to learn from: every file that it names must be there."""
    monkeypatch.setenv("RLMIX_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "demo"
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--quick", "--catalogue", "cheap", "--out", str(out), "--json"])
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    result = json.loads(printed.out)
    assert result == json.loads((out / "result.json").read_text())
    policy = load(out / "agent" / "policy")
    names = [demo.LEARNED, *policy.catalogue.names, demo.BEST, demo.BEST_PER_BUDGET]
    assert sorted(row["agent"] for row in result["agents"]) == sorted(names)
    with (out / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(names) * demo.QUICK.heldout
    # The one-line verdict must be the mean of the runs that are written beside it.
    accuracy = {(row["agent"], row["instance"]): float(row["accuracy"]) for row in rows}
    gains = [
        accuracy[demo.LEARNED, name] - accuracy["uniform-cheap", name] for agent, name in accuracy if agent == "none"
    ]
    measured = result["learned policy to"]["uniform random"]["mean"]["estimate"]
    assert measured == pytest.approx(sum(gains) / len(gains), abs=1e-9)
    # Deployed in an ordinary loop, the policy must do what the evaluation measured.
    deployed = re.search(r"test accuracy ([\d.]+) %, as evaluated ([\d.]+) %", printed.err)
    assert deployed is not None
    # One image is 0.25 points. The same loop on one thread and on two was seen 0.5 apart: 240 steps turn rounding into
    # an image or two. tests/test_parity.py holds the two ways together step by step.
    assert abs(float(deployed[1]) - float(deployed[2])) < 0.8
    page = (out / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    assert page.count("data:image/png") == 4
    events = EventAccumulator(str(out / "agent"), size_guidance={"scalars": 0})
    events.Reload()
    assert len(events.Scalars("rollout/ep_rew_mean")) == demo.QUICK.waves
    assert "mixed" in " ".join(events.Tags()["images"])


def test_a_finished_demo_is_not_overwritten_and_an_interrupted_one_is_gone_on_with(tmp_path: Path) -> None:
    """`make demo` twice must give two results; after Ctrl-C it must not begin anew."""
    out = tmp_path / "demo"
    assert demo._folder(out) == out
    out.mkdir()
    (out / "agent").mkdir()
    assert demo._folder(out) == out
    (out / demo.RESULT).write_text("{}")
    assert demo._folder(out) == tmp_path / "demo-2"
    (tmp_path / "demo-2").mkdir()
    (tmp_path / "demo-2" / demo.RESULT).write_text("{}")
    assert demo._folder(out) == tmp_path / "demo-3"


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    """A user must see how to call it."""
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    assert "rlmix demo --quick" in re.sub(r"\s+", " ", capsys.readouterr().out)
