"""`rlmix demo --service`."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rlmix.cli import service_demo as demo
from rlmix.cli.main import main
from rlmix.policy.artifact import load
from rlmix.policy.codec import catalogue

if TYPE_CHECKING:
    from rlmix.service.storage.abstract import AbstractStorage

COMMAND = [sys.executable, "-c", "from rlmix.cli.main import main; main()", "demo", "--service", "--catalogue", "cheap"]
POLICY = Path(__file__).resolve().parent.parent / "policy" / "artefacts" / "discrete"
DECISIONS = tuple((10 * number, decision) for number, decision in enumerate(catalogue("cheap").decisions[:3]))
TRAINED = demo.Trained(
    run="demo-1",
    decisions=tuple((step, decision.text) for step, decision in DECISIONS),
    origins={"server": 2, "snapshot": 1},
    report={"val_accuracy": 0.5, "val_tsnll": 1.5},
)


def started(out: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*COMMAND, "--quick", "--json", "--out", str(out)], env=environment, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def assert_nothing_runs(session: int) -> None:
    """Everything that the demo starts stays in the session that it was started in."""
    # Python's own trackers of workers end by themselves, a moment after those who used them.
    end = time.monotonic() + 20
    while is_there(session) and time.monotonic() < end:
        time.sleep(0.1)
    assert not is_there(session)


def is_there(session: int) -> bool:
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_three_trainings_outlive_a_kill_of_the_service_and_are_learned_from(tmp_path: Path) -> None:
    """The whole way: what it says must be what is in the folder, and no process may be left."""
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    out = tmp_path / "demo"
    process = started(out)
    printed, told = process.communicate(timeout=500)
    assert process.returncode == 0, told
    assert_nothing_runs(process.pid)
    result = json.loads(printed)
    assert result == json.loads((out / "result.json").read_text())
    assert result["kept"] == {"lost": 0, "changed": 0, "doubled": 0}
    assert "nothing was lost" in told
    assert [one["run"] for one in result["trainings"]] == ["demo-1", "demo-2", "demo-3"]
    for one in result["trainings"]:
        assert len(one["decisions"]) == sum(one["origins"].values()) == 8
        # They begin together, on another share of the seed each.
        assert one["origins"].keys() <= {"server", "snapshot"}
    assert len({json.dumps(one["decisions"]) for one in result["trainings"]}) == 3
    assert (result["versions"], result["default"]) == ([1, 2], 2)
    assert load(out / "policy").card["algorithm"].startswith("none")
    from rlmix.service.storage.opening import open_storage

    # After everything has ended, by somebody else.
    storage = open_storage(f"sqlite:///{out / 'rlmix.db'}")
    try:
        trainings = [demo.Trained(**one) for one in result["trainings"]]
        assert demo.compared(storage, [_tuples(one) for one in trainings]).whole
        assert {run.state for run in storage.runs("default", "", 10)} == {"finished"}
    finally:
        storage.close()


def _tuples(one: demo.Trained) -> demo.Trained:
    """Return what JSON has made of tuples as it was."""
    return dataclasses.replace(one, decisions=tuple((step, text) for step, text in one.decisions))


@pytest.mark.slow
def test_ctrl_c_ends_everything(tmp_path: Path) -> None:
    """A service that goes on behind the user's back holds its port and its database."""
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    process = started(tmp_path / "demo")
    assert process.stderr is not None
    assert next(line for line in process.stderr if "The service answers" in line)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 130, told
    assert "Stopped" in told
    assert "Traceback" not in told
    assert_nothing_runs(process.pid)


@pytest.fixture
def storage() -> Iterator[AbstractStorage]:
    """Return a storage that has what TRAINED had."""
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    from rlmix.service.records import DecisionRecord, Feedback
    from rlmix.service.server import publish
    from rlmix.service.storage.opening import MEMORY, open_storage

    made = open_storage(MEMORY)
    made.create_project("default")
    publish(made, POLICY)
    made.create_run("default", "demo-1", "default", "default", {})
    for seq, (step, decision) in enumerate(DECISIONS):
        record = DecisionRecord(
            seq=seq, attempt=1, step=step, observation=b"", allowed=None, explore=1, origin="server", entry=seq,
            decision=json.dumps(decision.to_json()), probability=0.2, value=None, issued=0,
        )  # fmt: skip
        made.put_decision("default", "demo-1", record)
    made.put_feedback("default", "demo-1", Feedback(seq=2, values=TRAINED.report, received=0), 1)
    made.end_run("default", "demo-1", "finished", 1)
    yield made
    made.close()


def test_what_is_stored_as_it_was_is_whole(storage: AbstractStorage) -> None:
    """Otherwise every demo would complain."""
    assert demo.compared(storage, [TRAINED]).whole


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"decisions": (*TRAINED.decisions, (30, "none"))}, demo.Kept(lost=1)),
        ({"decisions": (*TRAINED.decisions[:2], (20, "cutmix"))}, demo.Kept(changed=1)),
        ({"decisions": TRAINED.decisions[:2]}, demo.Kept(doubled=1)),
        ({"report": {"val_accuracy": 0.6, "val_tsnll": 1.5}}, demo.Kept(changed=1)),
    ],
)
def test_what_is_stored_otherwise_is_found(
    storage: AbstractStorage, change: dict[str, object], expected: demo.Kept
) -> None:
    """A demo that always says that nothing was lost proves nothing."""
    found = demo.compared(storage, [dataclasses.replace(TRAINED, **change)])  # type: ignore[arg-type]
    assert found == expected
    assert not found.whole


def test_a_report_and_an_end_that_are_missing_are_found(storage: AbstractStorage) -> None:
    """What is said last is what a crash takes first."""
    storage.create_run("default", "demo-2", "default", "default", {})
    other = dataclasses.replace(TRAINED, run="demo-2", decisions=())
    assert demo.compared(storage, [other]) == demo.Kept(lost=2)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    """The database must be a fresh one, and an agent's demo may lie there."""
    out = tmp_path / "demo"
    assert demo._free(out) == out
    out.mkdir()
    assert demo._free(out) == out
    (out / "agent").mkdir()
    assert demo._free(out) == tmp_path / "demo-2"
    (tmp_path / "demo-2").mkdir()
    (tmp_path / "demo-2" / "rlmix.db").touch()
    assert demo._free(out) == tmp_path / "demo-3"


@pytest.mark.parametrize("arguments", [("--out", "file"), ("--catalogue", "none")])
def test_wrong_input_is_refused_before_anything_begins(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As by every other command, with the same code."""
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--service", *arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("Error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_missing_extra_is_named(capsys: pytest.CaptureFixture[str], without: Callable[..., None]) -> None:
    """Whoever has installed the library alone must learn what to install."""
    without("uvicorn")
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--service"])
    assert ended.value.code == 2
    assert "pip install 'rlmix[serve]'" in capsys.readouterr().err
