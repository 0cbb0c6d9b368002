"""The benchmarks: they run, compare what is equal, and keep what they measured."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(name="benchmarks")
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """Return the benchmarks' modules by name; they are no part of the package, so the path is the checkout's."""
    monkeypatch.syspath_prepend(ROOT)
    return {
        name: importlib.import_module(f"benchmarks.{name}")
        for name in ("timing", "report", "apply", "calls", "loss", "fine_grained", "rmix", "bank", "decision")
    }


@pytest.mark.parametrize("group", ["apply", "loss", "fine_grained", "rmix", "bank", "decision"])
def test_candidates_of_every_small_case_give_what_they_should(benchmarks: dict[str, ModuleType], group: str) -> None:
    """A benchmark that compares different work, or no longer runs, would print figures that mean nothing."""
    small = benchmarks[group].cases()[:1]
    for build in small:
        case = build()
        measured = benchmarks["timing"].measure(case, quick=True)
        assert list(measured["candidates"]) == [candidate.name for candidate in case.candidates]
        assert measured["candidates"][measured["baseline"]]["ratio"]["median"] == 1
        assert len(measured["goals"]) == len(case.goals) + len(case.ceilings)
        for figures in measured["candidates"].values():
            assert 0 < figures["ms"]["q1"] <= figures["ms"]["median"] <= figures["ms"]["q3"]


def test_peers_labels_are_held_against_their_pixels(benchmarks: dict[str, ModuleType]) -> None:
    """Peers that mix something else, or report a weight of another meaning, must not be raced against."""
    pytest.importorskip("timm")
    pytest.importorskip("kornia")
    pytest.importorskip("mixup")
    measured = benchmarks["timing"].measure(benchmarks["calls"].cases()[2](), quick=True)
    assert len(measured["candidates"]) == 7
    speckled = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    with pytest.raises(AssertionError, match="labels do not follow the pixels"):
        benchmarks["calls"].check_labels_follow_pixels(
            lambda images: (images.roll(1, 0).where(speckled, images), torch.eye(4)), 4, 8, torch.diagonal
        )


def test_a_ratio_is_formed_within_rounds(benchmarks: dict[str, ModuleType]) -> None:
    """A machine that is slow in some rounds must not change the ratio of two candidates."""
    load = [1.0, 10.0, 1.0, 100.0]
    ratio = benchmarks["timing"].ratios([2 * moment for moment in load], load)
    assert ratio == {"q1": 2.0, "median": 2.0, "q3": 2.0}


def test_a_run_keeps_what_it_measured_under_both_mallocs(tmp_path: Path) -> None:
    """A result without its commit, hardware or verdict cannot be compared with a later one."""
    words = [sys.executable, "-m", "benchmarks", "--quick", "--only", "decision", "--out", str(tmp_path)]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "one decision in process" in run.stdout
    (data,) = tmp_path.glob("*.json")
    result = json.loads(data.read_text(encoding="utf-8"))
    assert {"commit", "uncommitted_changes", "processor", "cores", "torch", "date", "command"} <= set(
        result["environment"]
    )
    assert [run["malloc"] for run in result["runs"]] == ["default malloc", "raised thresholds"]
    assert all(run["cases"][0]["goals"][0]["met"] in (True, False) for run in result["runs"])
    (text,) = tmp_path.glob("*.md")
    assert "## Goals" in text.read_text(encoding="utf-8")
