"""Runs on disk: nothing is lost but the block under way, nothing is believed that is damaged."""

from __future__ import annotations

import dataclasses

import pytest

from rlmix.agents.ledger import COLUMNS, Ledger, Record, machine, problem_of, read
from rlmix.agents.report import Run
from rlmix.envs.instances import digits_set
from rlmix.errors import CheckpointError

INSTANCE = digits_set("heldout", 1).instances[0]


def record(replicate=0, *, agent="none", accuracy=0.1 + 0.2, ece: float | None = 0.25, **changes) -> Record:
    run = Run(
        instance=INSTANCE.id, agent=agent, replicate=replicate, total_steps=56, epochs=56 / 3, accuracy=accuracy,
        score=2 / 3, ts_nll=1e-17, ece=ece, actions=("none", "cutmix-1"),
    )  # fmt: skip
    whole = Record(
        block=0, variant="steps", digest=f"digest-of-{agent}", key=2**62 + replicate, split="test", catalogue="c",
        machine="cpu", problem=problem_of(INSTANCE), run=run,
    )  # fmt: skip
    return dataclasses.replace(whole, **changes)


def test_file_gives_every_run_back_to_the_last_bit(tmp_path):
    """Replays compare floats exactly, and keys have more digits than a float."""
    ledger = Ledger(tmp_path / "runs.csv", resume=False)
    first, second = [record(0), record(1, ece=None)], [record(2)]
    ledger.append(first)
    ledger.append(second)
    found = read(tmp_path / "runs.csv")
    assert found == [*first, dataclasses.replace(second[0], block=1)]
    assert found[0].instance == INSTANCE
    again = Ledger(tmp_path / "runs.csv", resume=True)
    assert len(again) == 3
    assert again.get(record(1).identity) == first[1]
    assert again.get(record(3).identity) is None


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_torn_last_line_is_dropped_and_the_file_goes_on(tmp_path, cut):
    """A kill in the middle of a write must cost the run that was written, and no other."""
    path = tmp_path / "runs.csv"
    ledger = Ledger(path, resume=False)
    ledger.append([record(0)])
    ledger.append([record(1)])
    path.write_bytes(path.read_bytes()[:-cut])
    assert len(read(path)) == 1
    resumed = Ledger(path, resume=True)
    assert len(resumed) == 1
    resumed.append([record(1)])
    assert [one.run for one in read(path)] == [record(0).run, record(1).run]


def test_file_cut_inside_its_header_begins_anew(tmp_path):
    """A header that is half there would name half of the columns."""
    path = tmp_path / "runs.csv"
    path.write_text("instance,age", encoding="utf-8")
    ledger = Ledger(path, resume=True)
    assert len(ledger) == 0
    ledger.append([record(0)])
    assert path.read_text(encoding="utf-8").splitlines()[0] == ",".join(COLUMNS)


def test_what_differs_in_anything_that_matters_is_another_run(tmp_path):
    """A changed instance of the same name, or another policy, must not get the old result."""
    other = problem_of(dataclasses.replace(INSTANCE, learning_rate=0.5))
    kinds = [
        record(), record(1), record(agent="cutmix-1"), record(variant="replay"), record(split="reward"),
        record(problem=other),
    ]  # fmt: skip
    assert len({one.identity for one in kinds}) == len(kinds)
    renamed = record(run=dataclasses.replace(record().run, agent="another name"))
    assert renamed.identity == record().identity


def test_runs_are_not_overwritten_unless_it_is_said(tmp_path):
    """A forgotten --resume would throw a night away."""
    Ledger(tmp_path / "runs.csv", resume=False).append([record()])
    with pytest.raises(CheckpointError, match="Go on with --resume"):
        Ledger(tmp_path / "runs.csv", resume=False)


def test_foreign_and_damaged_files_are_named(tmp_path):
    """A KeyError says nothing about the file."""
    path = tmp_path / "runs.csv"
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(path)
    path.write_text("instance,agent\na,b\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match="has no column `replicate`"):
        read(path)
    Ledger(tmp_path / "other.csv", resume=False).append([record(0), record(1)])
    lines = (tmp_path / "other.csv").read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines[:2], lines[2].replace("0.30000000000000004", "0.3x")]) + "\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"runs.csv`, line 3, is damaged"):
        read(path)
    with pytest.raises(CheckpointError, match="which is no instance"):
        _ = record(problem='{"id": 3}').instance


def test_machine_says_what_bits_depend_on():
    """Threads and instruction sets change how a sum is rounded."""
    assert machine("cpu").startswith("cpu-")
    assert "/torch-" in machine("cpu")
