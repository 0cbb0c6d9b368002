"""Writing a project's runs as JSON lines, for programs that know nothing of the service."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rlmix._files import writable_folder
from rlmix.errors import MissingError, OutputError, StorageError
from rlmix.service import schemas
from rlmix.service.records import DecisionRecord, Feedback, Run
from rlmix.service.storage.abstract import PAGE, AbstractStorage

Row = TypeVar("Row", DecisionRecord, Feedback)

FILES = ("runs.jsonl", "decisions.jsonl", "feedback.jsonl")
"""What an export consists of."""


def export(
    storage: AbstractStorage, project: str, folder: Path, progress: Callable[[int, int], None]
) -> dict[str, int]:
    """Write runs, decisions and feedback, a row on each line, as the service answers them.

    Decisions and feedback have the name of their run besides, and decisions what the policy read: `observation`, a
    list of numbers, and `allowed`.

    Args:
        storage: what holds the project.
        project: its name.
        folder: where the `FILES` go; made if need be.
        progress: told how many runs of how many are written.

    Returns:
        How many lines each file has, by name.

    Raises:
        MissingError: there is no such project.
        OutputError: one of the files is there, or cannot be written.
        StorageError: the database cannot answer.
    """
    if project not in storage.projects():
        raise MissingError(f"there is no project `{project}`.")
    writable_folder(folder)
    taken = [name for name in FILES if (folder / name).exists()]
    if taken:
        raise OutputError(f"`{folder}` has {', '.join(taken)} already. Give another folder.")
    # Files that are half are never seen under their names.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as temporary:
        try:
            counts = _write(storage, project, Path(temporary), progress)
            for name in FILES:
                (Path(temporary) / name).rename(folder / name)
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise OutputError(f"`{folder}` cannot be written ({error.strerror or error}).") from error
    return counts


def _write(
    storage: AbstractStorage, project: str, folder: Path, progress: Callable[[int, int], None]
) -> dict[str, int]:
    counts = dict.fromkeys(FILES, 0)
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("w", encoding="utf-8")) for name in FILES}

        def put(name: str, row: Mapping[str, Any]) -> None:
            files[name].write(json.dumps(row, allow_nan=False) + "\n")
            counts[name] += 1

        runs = list(_runs(storage, project))
        for number, run in enumerate(runs):
            put("runs.jsonl", schemas.of_run(run))
            for record in _rows(partial(storage.decisions, project, run.name)):
                put("decisions.jsonl", {"run": run.name, **_decision(record, run)})
            for given in _rows(partial(storage.feedbacks, project, run.name)):
                put("feedback.jsonl", {"run": run.name, **schemas.of_feedback(given)})
            progress(number + 1, len(runs))
    return counts


def _decision(record: DecisionRecord, run: Run) -> dict[str, Any]:
    observation = np.frombuffer(record.observation, "<f4").tolist()
    return {**schemas.of_decision(record, run.version), "observation": observation, "allowed": record.allowed}


def _runs(storage: AbstractStorage, project: str) -> Iterator[Run]:
    page = storage.runs(project, "", PAGE)
    while page:
        yield from page
        page = storage.runs(project, page[-1].name, PAGE)


def _rows(page_after: Callable[[int, int], Sequence[Row]]) -> Iterator[Row]:
    page = page_after(-1, PAGE)
    while page:
        yield from page
        page = page_after(page[-1].seq, PAGE)
