"""Runs on disk: a CSV file that grows by one block at a time, survives a kill, and says enough to train a run again."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, final

import torch

from rlmix._files import sha256_of, writable_folder, write_text
from rlmix.agents.report import Run
from rlmix.envs.instances import Instance
from rlmix.errors import CheckpointError, OutputError

# Enough of a digest that two things of one study never share it.
_DIGITS = 16


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One run, and what it was a run of.

    Attributes:
        block: number of the block that it was trained in; the rows of a block stand together and in its order.
        variant: what was asked of the agent, such as "steps"; see `rlmix.agents.protocol`.
        digest: of the agent.
        key: episode key, in [0, 2**63).
        split: the images that were measured on, "test" or "reward".
        catalogue: digest of the catalogue that the actions are entries of.
        machine: what was computed on, as `machine` says.
        problem: the instance in full, as compact JSON.
        run: the run.
    """

    block: int
    variant: str
    digest: str
    key: int
    split: str
    catalogue: str
    machine: str
    problem: str
    run: Run

    @property
    def identity(self) -> Identity:
        """What may be recorded only once."""
        return Identity(problem=self.problem, digest=self.digest, key=self.key, variant=self.variant, split=self.split)

    @property
    def instance(self) -> Instance:
        """The training problem.

        Raises:
            CheckpointError: the column does not hold one.
        """
        try:
            return Instance(**json.loads(self.problem))
        except (TypeError, ValueError) as error:
            given = f"`problem` {self.problem[:60]!r}"
            raise CheckpointError(f"a run has the {given}, which is no instance ({error}).") from error


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a run is a run of: two runs of equal identity are the same computation."""

    problem: str
    digest: str
    key: int
    variant: str
    split: str


_OWN = [field.name for field in fields(Record) if field.name != "run"]
_RUN = [field.name for field in fields(Run)]
COLUMNS = (*_RUN, *_OWN)


@final
class Ledger:
    """The runs of a study in one CSV file.

    A block is appended in one write and synced, so that a kill loses at most the block under way. A last line without
    its end is what a kill leaves; it is dropped.

    Args:
        path: the file; it is created with the first block.
        resume: read what is there and go on; otherwise there must be no file.

    Raises:
        CheckpointError: there is a file and `resume` is False, or it is no file of runs.
        OutputError: the folder cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, resume: bool) -> None:
        self.path = Path(path)
        writable_folder(self.path.parent)
        self._records: dict[Identity, Record] = {}
        if self.path.exists():
            if not resume:
                raise CheckpointError(
                    f"`{self.path}` has runs of an earlier evaluation. Go on with --resume, or give another folder."
                )
            self._drop_torn_line()
        if self.path.exists():
            self._records = {record.identity: record for record in read(self.path)}
        self._blocks = 1 + max((record.block for record in self._records.values()), default=-1)

    def __len__(self) -> int:
        return len(self._records)

    def get(self, identity: Identity) -> Record | None:
        """Return the recorded run, or None."""
        return self._records.get(identity)

    def append(self, records: Sequence[Record]) -> None:
        """Write a block; its number is given here.

        Raises:
            OutputError: the file cannot be written.
        """
        numbered = [replace(record, block=self._blocks) for record in records]
        text = _text(numbered) if self.path.exists() else _text(numbered, header=True)
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"`{self.path}` cannot be written ({error.strerror or error}).") from error
        self._blocks += 1
        self._records.update((record.identity, record) for record in numbered)

    def _drop_torn_line(self) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if not whole:
            # Not even the header is there: the next block begins the file.
            self.path.unlink()
        elif len(whole) < len(data):
            write_text(self.path, whole.decode("utf-8"))


def read(path: str | os.PathLike[str]) -> list[Record]:
    """Return the runs of a file in its order; a last line without its end is passed over.

    Raises:
        CheckpointError: the file is missing, or no file of runs, or has a damaged line.
    """
    source = Path(path)
    try:
        data = source.read_bytes()
        text = data[: data.rfind(b"\n") + 1].decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"`{source}` cannot be read ({error}). Give the runs.csv of an evaluation.") from error
    rows = csv.reader(io.StringIO(text))
    header = next(rows, [])
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise CheckpointError(
            f"`{source}` has no column `{missing[0]}`, so its runs cannot be trained again. Give the runs.csv that "
            "`rlmix agent evaluate --levels` (or --resume) writes."
        )
    found = []
    for number, row in enumerate(rows, start=2):
        try:
            found.append(_parsed(dict(zip(header, row, strict=True))))
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"`{source}`, line {number}, is damaged ({error}). Delete the line.") from error
    return found


def problem_of(instance: Instance) -> str:
    """Return an instance in full, as compact JSON: equal texts are equal instances."""
    return json.dumps(instance.document(), sort_keys=True, separators=(",", ":"))


def machine(device: str | torch.device) -> str:
    """Return in one word what results depend on: kind of processor, threads of a CPU, version of torch."""
    chosen = torch.device(device)
    if chosen.type == "cuda":
        return f"{torch.cuda.get_device_name(chosen).replace(' ', '-')}/torch-{torch.__version__}"
    threads, capability = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    return f"{chosen.type}-{capability}-{threads}/torch-{torch.__version__}"


def short(digest: str) -> str:
    """Return as much of a digest as a file of runs keeps."""
    return digest[:_DIGITS]


def digest_of(files: Iterable[bytes]) -> str:
    """Return the digest of an agent's files, in the form that a file of runs keeps."""
    return short(sha256_of(b"\0".join(files)))


def _text(records: Sequence[Record], *, header: bool = False) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(COLUMNS)
    for record in records:
        run: dict[str, Any] = {**asdict(record.run), "actions": " ".join(record.run.actions)}
        writer.writerow([*(run[name] for name in _RUN), *(getattr(record, name) for name in _OWN)])
    return text.getvalue()


def _parsed(row: dict[str, str]) -> Record:
    run = Run(
        instance=row["instance"],
        agent=row["agent"],
        replicate=int(row["replicate"]),
        total_steps=int(row["total_steps"]),
        epochs=float(row["epochs"]),
        accuracy=float(row["accuracy"]),
        score=float(row["score"]),
        ts_nll=float(row["ts_nll"]),
        ece=float(row["ece"]) if row["ece"] else None,
        actions=tuple(row["actions"].split()),
    )
    return Record(
        block=int(row["block"]),
        key=int(row["key"]),
        # A file names the same few problems again and again.
        problem=sys.intern(row["problem"]),
        run=run,
        **{name: row[name] for name in ("variant", "digest", "split", "catalogue", "machine")},
    )
