"""Reference scores of instances: how good classifiers become under each entry of a catalogue, kept on disk.

The reward compares with one of them, uniform random mixing; the whole table says which entry wins where, and so whether
a set has anything to learn.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, final

import torch
from torch import Tensor

from rlmix._files import sha256_of, writable_folder, write_text
from rlmix._workers import Workers
from rlmix.envs.block import Block, Library, Slot, buckets
from rlmix.envs.dynamics import Visible
from rlmix.envs.instances import Instance, InstanceSet
from rlmix.envs.reward import clean_entry, uniform_entry
from rlmix.errors import CheckpointError
from rlmix.ops import rng
from rlmix.policy.codec import Catalogue

Progress: TypeAlias = Callable[[int, int], None]

REPLICATES = 2
CACHE_VARIABLE = "RLMIX_CACHE"

# To be raised with every change of what a training does: old tables are of other trainings.
_SCHEMA = "rlmix.reference/4"
# Nobody seeds an environment with a key derived from this word.
_REFERENCE = rng.words("uniform reference")
# Instances that are trained as one stack. A mixture draws for every step anew, which takes the same time for few slots
# as for many.
_STACKED = 72
# A pool that goes through its set within so many waves needs all references soon.
_FEW_WAVES = 4


@final
@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Reference scores on held-out training images (val-R).

    Attributes:
        instances: ids of the instances, n.
        entries: names of the entries, E.
        scores: float64 [n, E, REPLICATES], S of `rlmix.envs.reward`.
        accuracies: the same shape, in [0, 1].
    """

    instances: tuple[str, ...]
    entries: tuple[str, ...]
    scores: Tensor
    accuracies: Tensor


@final
class References:
    """Reference scores, computed when needed and once for an instance set and a catalogue.

    Args:
        instances: the set.
        library: of the pool.
        progress: called with the trainings (of an instance under an entry) done so far and those to do in all.
        processes: how many they are divided among.

    Raises:
        EnvError: the catalogue has no mixture.
        OutputError: the folder, that of the environment variable RLMIX_CACHE or ~/.cache/rlmix, cannot be written.
    """

    def __init__(self, instances: InstanceSet, library: Library, progress: Progress | None, processes: int = 1) -> None:
        self._entry = library.catalogue.names[uniform_entry(library.catalogue)]
        self._set, self._library, self._progress, self._processes = instances, library, progress, processes
        # Other devices round otherwise, so each kind has a table of its own.
        content = f"{_SCHEMA} {instances.digest} {library.catalogue.digest} {library.device.type}"
        self._digest = sha256_of(content.encode())
        folder = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "rlmix")
        self.path = writable_folder(folder / "reference") / f"{instances.name}-{self._digest[:16]}.json"
        self._horizon = instances.horizon
        self._rows = self._read()

    def of(self, instances: Sequence[Instance]) -> Tensor:
        """Return S_u of each instance, float64 [N]: its mean score with uniform random mixing.

        What is missing is computed and written.

        Raises:
            OutputError: the file cannot be written.
        """
        known = self._set.instances
        others = known if len(instances) * _FEW_WAVES >= len(known) else ()
        self._complete((*instances, *others), [self._entry])
        return self._read_out(instances, [self._entry])[:, 0, :, 0].mean(1)

    def table(self) -> Table:
        """Return the scores of all instances of the set under all entries.

        What is missing is computed and written, block by block: an interrupted table goes on where it was.

        Raises:
            OutputError: the file cannot be written.
        """
        names = self._library.catalogue.names
        self._complete(self._set.instances, names)
        found = self._read_out(self._set.instances, names)
        return Table(self._set.ids, names, found[..., 0], found[..., 1])

    def finishes(self, kept: Sequence[int]) -> Tensor:
        """Return the scores of all instances when each entry is kept at first, and nothing is mixed after that.

        The trainings are those of `table` up to there: both differ by the finish alone.

        Args:
            kept: for how many decisions, each between 1 and the horizon less 1.

        Returns:
            S, float64 [n, E, len(kept), REPLICATES].

        Raises:
            EnvError: the catalogue has no entry that mixes nothing.
            OutputError: the file cannot be written.
        """
        catalogue = self._library.catalogue
        clean = catalogue.names[clean_entry(catalogue)]
        self._complete(self._set.instances, catalogue.names, sorted(kept))
        # Nothing changes where nothing is mixed anyway.
        columns = [[name if name == clean else _finish(name, count) for count in kept] for name in catalogue.names]
        return torch.stack([self._read_out(self._set.instances, names)[..., 0] for names in columns], 1)

    def _read_out(self, instances: Sequence[Instance], entries: Sequence[str]) -> Tensor:
        """Return known rows, float64 [n, E, REPLICATES, 2]: score and accuracy."""
        rows = [[self._rows[_row_name(one)][entry] for entry in entries] for one in instances]
        return torch.tensor(rows, dtype=torch.float64)

    def _complete(self, instances: Sequence[Instance], entries: Sequence[str], kept: Sequence[int] = ()) -> None:
        """Compute and write what is not known yet."""
        wanted = {_row_name(one): one for one in instances}
        clean = self._library.catalogue.names[clean_entry(self._library.catalogue)] if kept else ""
        tasks = []
        for entry in entries:
            finishes = () if entry == clean else tuple(kept)
            columns = {entry, *(_finish(entry, count) for count in finishes)}
            lacking = [one for name, one in wanted.items() if not columns <= self._rows.get(name, {}).keys()]
            for rows in buckets(lacking):
                parts = (rows[start : start + _STACKED] for start in range(0, len(rows), _STACKED))
                tasks += [_Task(entry, finishes, self._horizon, tuple(lacking[row] for row in part)) for part in parts]
        if not tasks:
            return
        done, total = 0, sum(len(task.instances) for task in tasks)
        self._tell(done, total)
        here = self._library
        with Workers(self._processes, _open_library, here.catalogue, here.data_dir, str(here.device)) as workers:
            found = workers.map(tasks, here=lambda task: _trained(here, task), there=_trained_there)
            for task, trained in zip(tasks, found, strict=True):
                self._keep(task.instances, trained)
                done += len(task.instances)
                self._tell(done, total)

    def _keep(self, instances: Sequence[Instance], columns: Mapping[str, list[list[list[float]]]]) -> None:
        # Another process may have written its rows meanwhile.
        for name, row in self._read().items():
            self._rows[name] = {**row, **self._rows.get(name, {})}
        for column, replicates in columns.items():
            for one, values in zip(instances, replicates, strict=True):
                self._rows.setdefault(_row_name(one), {})[column] = values
        document = {"schema": _SCHEMA, "digest": self._digest, "rows": self._rows}
        write_text(self.path, json.dumps(document) + "\n")

    def _read(self) -> dict[str, dict[str, list[list[float]]]]:
        if not self.path.exists():
            return {}
        try:
            document: Any = json.loads(self.path.read_text(encoding="utf-8"))
            if document["schema"] != _SCHEMA or document["digest"] != self._digest:
                raise ValueError("it is of another set or version")
            return {
                str(name): {str(entry): _replicates(values) for entry, values in row.items()}
                for name, row in document["rows"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"`{self.path}` is damaged ({error}). Delete it; it is computed anew.") from error

    def _tell(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(done, total)


class _Task(NamedTuple):
    """Instances of one bucket that are trained under one entry, and finished without a mix after some decisions."""

    entry: str
    finishes: tuple[int, ...]
    horizon: int
    instances: tuple[Instance, ...]


def _trained(library: Library, task: _Task) -> dict[str, list[list[list[float]]]]:
    """Train, and return score and accuracy of each instance's replicates, by column of the table."""
    slots = [
        Slot(instance=instance, key=key, visible=Visible())
        for instance in task.instances
        for key in reference_keys(instance)
    ]
    block = Block.begin(library, slots)
    entries = [library.catalogue.index(task.entry)] * len(slots)
    found, done, total = {}, 0, task.instances[0].total_steps
    for kept in task.finishes:
        first = kept * total // task.horizon
        block.advance(entries, done, first)
        fork, done = block.select(range(len(slots)), slots), first
        fork.advance([clean_entry(library.catalogue)] * len(slots), done, total)
        found[_finish(task.entry, kept)] = _pairs(fork, task)
    block.advance(entries, done, total)
    return {**found, task.entry: _pairs(block, task)}


def _pairs(block: Block, task: _Task) -> list[list[list[float]]]:
    """Return score and accuracy of each instance's replicates."""
    scores = block.scores()
    both = torch.stack([scores.score, scores.accuracy], 1)
    pairs: list[list[list[float]]] = both.view(len(task.instances), REPLICATES, 2).tolist()
    return pairs


def _finish(entry: str, kept: int) -> str:
    """Return the table's column of an entry that is kept for some decisions, and followed by no mix."""
    return f"{entry}, {kept} decisions"


# Of a process that only computes references.
_LIBRARIES: list[Library] = []


def _open_library(catalogue: Catalogue, data_dir: str | os.PathLike[str] | None, device: str) -> None:
    _LIBRARIES[:] = [Library(catalogue, data_dir, device)]


def _trained_there(task: _Task) -> dict[str, list[list[list[float]]]]:
    return _trained(_LIBRARIES[0], task)


def _replicates(values: Any) -> list[list[float]]:
    found = [[float(score), float(accuracy)] for score, accuracy in values]
    if len(found) != REPLICATES:
        raise ValueError(f"it has {len(found)} replicates, expected {REPLICATES}")
    return found


def reference_keys(instance: Instance) -> list[int]:
    """Return the episode keys of an instance's reference trainings."""
    return [rng.derive(instance.seed, _REFERENCE, replicate) for replicate in range(REPLICATES)]


def _row_name(instance: Instance) -> str:
    """Name an instance by everything that it is: one that is not of the set may have an id of the set."""
    return f"{instance.id} {sha256_of(repr(instance).encode())[:16]}"
