"""A project as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from rlmix.errors import MissingError, OutputError
from rlmix.service import export as module
from rlmix.service.export import FILES, export
from rlmix.service.records import Feedback
from rlmix.service.storage.abstract import AbstractStorage
from rlmix.service.storage.opening import MEMORY, open_storage
from rlmix.testing.storage import record, run_in


@pytest.fixture
def storage() -> Iterator[AbstractStorage]:
    """Return a storage with two runs."""
    made = open_storage(MEMORY)
    for name in ("r", "s"):
        run_in(made, name)
    for seq in range(7):
        made.put_decision("p", "r", record(seq, observation=np.float32([0.1, -seq / 3]).tobytes()))
        made.put_feedback("p", "r", Feedback(seq=seq, values={"x": seq / 7}, received=0), 1)
    yield made
    made.close()


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_row_is_a_line(storage: AbstractStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever analyses runs elsewhere needs all of them, with the numbers that the policy read."""
    monkeypatch.setattr(module, "PAGE", 2)
    seen: list[tuple[int, int]] = []
    counts = export(storage, "p", tmp_path / "out", lambda *done: seen.append(done))
    assert counts == {"runs.jsonl": 2, "decisions.jsonl": 7, "feedback.jsonl": 7}
    assert seen == [(1, 2), (2, 2)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)
    assert [run["run"] for run in lines(tmp_path / "out" / "runs.jsonl")] == ["r", "s"]
    for seq, row in enumerate(lines(tmp_path / "out" / "decisions.jsonl")):
        stored = storage.decision("p", "r", seq)
        assert (row["run"], row["seq"], row["allowed"]) == ("r", seq, list(stored.allowed or ()))
        assert np.float32(row["observation"]).tobytes() == stored.observation
        assert row["probability"] == stored.probability
    for seq, row in enumerate(lines(tmp_path / "out" / "feedback.jsonl")):
        assert (row["run"], row["seq"], row["values"]) == ("r", seq, {"x": seq / 7})


def test_an_export_replaces_nothing_and_leaves_nothing_half(storage: AbstractStorage, tmp_path: Path) -> None:
    """Two exports in one folder would be mixed; half of one would be taken for all."""

    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(storage, "p", tmp_path, fail)
    assert not list(tmp_path.iterdir())
    with pytest.raises(MissingError, match="no project `nobody`"):
        export(storage, "nobody", tmp_path, fail)
    (tmp_path / "runs.jsonl").write_text("mine")
    with pytest.raises(OutputError, match="runs.jsonl already"):
        export(storage, "p", tmp_path, fail)
    assert (tmp_path / "runs.jsonl").read_text() == "mine"
