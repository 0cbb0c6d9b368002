"""The benchmarks of the service: what they conclude from figures, and that a storm sees what is wrong."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(name="benchmarks")
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """Return the benchmarks' modules by name; they are no part of the package, so the path is the checkout's."""
    monkeypatch.syspath_prepend(ROOT)
    return {name: importlib.import_module(f"benchmarks.{name}") for name in ("service", "service_soak", "storm")}


def test_goals_are_held_against_the_right_side(benchmarks: dict[str, ModuleType]) -> None:
    """A goal that says "at least" where it means "at most" is met by everything that is bad."""
    good = {"one client p50": 1.0, "Optuna ask / decision, default sampler": 40.0, "throughput full / empty": 1.0}
    bad = {"one client p50": 3.0, "Optuna ask / decision, default sampler": 10.0, "throughput full / empty": 0.5}
    for figures, word in ((good, "met"), (bad, "MISSED")):
        found = {name: {"median": value, "rounds": [value]} for name, value in figures.items()}
        lines = {line[0]: line[2] for line in benchmarks["service"].verdicts(found)}
        judged = [text for text in lines.values() if not text.startswith("skipped")]
        assert len(judged) == 3
        assert all(text.startswith(f"**{word}**") for text in judged)
        assert "| goal |" in benchmarks["service"].markdown({"date": "2026-11-21"}, found)


def test_a_slope_leaves_the_beginning_out(benchmarks: dict[str, ModuleType]) -> None:
    """What a process reads in its first minutes is no leak; what it takes for ever is one."""
    warm = [{"seconds": second, "memory": min(600.0, 500 + second), "log": 1.0, "files": 20.0} for second in range(600)]
    leaking = [{**one, "memory": one["memory"] + one["seconds"] / 30} for one in warm]
    assert benchmarks["service_soak"].figures(warm)["slope"] == pytest.approx(0, abs=1e-9)
    assert benchmarks["service_soak"].figures(leaking)["slope"] == pytest.approx(2)


class Stored:
    """Stands for a service that has stored something else than it said."""

    def __init__(self, run: dict[str, object], decisions: list[dict[str, object]]) -> None:
        self._answers = {"runs": [run], "decisions": decisions, "feedback": []}

    def get(self, path: str) -> bytes:
        return b'{"attempt":1,"state":"active"}'

    def pages(self, path: str, name: str, key: str, after: object) -> list[dict[str, object]]:
        return self._answers[name]


@pytest.mark.parametrize(
    ("stored", "kind"),
    [
        ([{"seq": 0, "x": 1}, {"seq": 1, "x": 2}], None),
        ([{"seq": 0, "x": 1}], "lost"),
        ([{"seq": 0, "x": 1}, {"seq": 1, "x": 3}], "changed"),
        ([{"seq": 0, "x": 1}, {"seq": 1, "x": 2}, {"seq": 2, "x": 2}], "unknown"),
        ([{"seq": 0, "x": 1}, {"seq": 1, "x": 2}, {"seq": 1, "x": 2}], "unknown"),
    ],
)
def test_a_storm_sees_what_is_lost_changed_or_doubled(
    benchmarks: dict[str, ModuleType], stored: list[dict[str, object]], kind: str | None, policy: Path, tmp_path: Path
) -> None:
    """A comparison that finds nothing wrong with anything proves nothing."""
    storms = benchmarks["storm"]
    storm = storms.Storm(storms.Service(tmp_path, "sqlite://", policy), policy, writers=1)
    ledger = storm.writers[0].ledger
    base = f"{storms.PROJECT}/runs/w0-0/decisions"
    ledger.runs["w0-0"] = (1, "active")
    ledger.replies.update({f"{base}/0": b'{"seq":0,"x":1}', f"{base}/1": b'{"seq":1,"x":2}'})
    reader = Stored({"run": "w0-0"}, stored)
    # Single answers are compared by the storm as well; here there are only pages.
    reader.get = lambda path: ledger.replies.get(path, b'{"attempt":1,"state":"active"}')  # type: ignore[method-assign]
    storm._compare(reader, ledger)
    found = {name: getattr(storm.report, name) for name in ("lost", "changed", "unknown")}
    assert [name for name, paths in found.items() if paths] == ([] if kind is None else [kind])


@pytest.fixture
def policy() -> Path:
    """The folder of a small policy."""
    return ROOT / "tests" / "policy" / "artefacts" / "discrete"
