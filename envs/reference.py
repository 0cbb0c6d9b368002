"""The references of the reward: how good an instance's classifiers become with uniform random mixing, kept on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, final

import torch
from torch import Tensor

from rlmix._files import sha256_of, writable_folder, write_text
from rlmix.envs.block import Block, Library, Slot, buckets
from rlmix.envs.dynamics import Visible
from rlmix.envs.instances import Instance, InstanceSet
from rlmix.envs.reward import uniform_entry
from rlmix.errors import CheckpointError
from rlmix.ops import rng

Progress: TypeAlias = Callable[[int, int], None]

REPLICATES = 2
CACHE_VARIABLE = "RLMIX_CACHE"

# To be raised with every change of what a training does: old tables are of other trainings.
_SCHEMA = "rlmix.reference/3"
# Nobody seeds an environment with a key derived from this word.
_REFERENCE = rng.words("uniform reference")
# Instances that are trained as one stack. A mixture draws for every step anew, which takes the same time for few slots
# as for many.
_STACKED = 72
# A pool that goes through its set within so many waves needs all references soon.
_FEW_WAVES = 4


@final
class References:
    """S_u of instances, computed when needed and once for an instance set and a catalogue.

    Args:
        instances: the set.
        library: of the pool.
        progress: called with the instances done so far and those to do in all.

    Raises:
        EnvError: the catalogue has no mixture.
        OutputError: the folder, that of the environment variable RLMIX_CACHE or ~/.cache/rlmix, cannot be written.
    """

    def __init__(self, instances: InstanceSet, library: Library, progress: Progress | None) -> None:
        self._entry = uniform_entry(library.catalogue)
        self._set, self._library, self._progress = instances, library, progress
        # Other devices round otherwise, so each kind has a table of its own.
        content = f"{_SCHEMA} {instances.digest} {library.catalogue.digest} {library.device.type}"
        self._digest = sha256_of(content.encode())
        folder = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "rlmix")
        self.path = writable_folder(folder / "reference") / f"{instances.name}-{self._digest[:16]}.json"
        self._rows = self._read()

    def of(self, instances: Sequence[Instance]) -> Tensor:
        """Return S_u of each instance, float64 [N]; what is missing is computed and written.

        Raises:
            OutputError: the file cannot be written.
        """
        known = self._set.instances
        others = known if len(instances) * _FEW_WAVES >= len(known) else ()
        missing = {_row_name(one): one for one in (*instances, *others) if _row_name(one) not in self._rows}
        if missing:
            computed = dict(zip(missing, self._compute(list(missing.values())), strict=True))
            # Another process may have written its rows meanwhile.
            self._rows = {**self._read(), **computed}
            document = {"schema": _SCHEMA, "digest": self._digest, "rows": self._rows}
            write_text(self.path, json.dumps(document, indent=1) + "\n")
        return torch.tensor([self._rows[_row_name(one)] for one in instances], dtype=torch.float64)

    def _read(self) -> dict[str, float]:
        if not self.path.exists():
            return {}
        try:
            document: Any = json.loads(self.path.read_text(encoding="utf-8"))
            if document["schema"] != _SCHEMA or document["digest"] != self._digest:
                raise ValueError("it is of another set or version")
            return {str(name): float(value) for name, value in document["rows"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"`{self.path}` is damaged ({error}). Delete it; it is computed anew.") from error

    def _compute(self, instances: Sequence[Instance]) -> list[float]:
        found: dict[Instance, float] = {}
        self._tell(0, len(instances))
        for rows in buckets(instances):
            for start in range(0, len(rows), _STACKED):
                part = [instances[row] for row in rows[start : start + _STACKED]]
                found.update(zip(part, self._scores(part), strict=True))
                self._tell(len(found), len(instances))
        return [found[instance] for instance in instances]

    def _scores(self, instances: Sequence[Instance]) -> Iterable[float]:
        """Train instances of one bucket with uniform random mixing, and return their mean scores."""
        slots = [
            Slot(instance=instance, key=key, visible=Visible())
            for instance in instances
            for key in reference_keys(instance)
        ]
        block = Block.begin(self._library, slots)
        block.advance([self._entry] * len(slots), 0, instances[0].total_steps)
        means: list[float] = block.scores().score.view(len(instances), -1).mean(1).tolist()
        return means

    def _tell(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(done, total)


def reference_keys(instance: Instance) -> list[int]:
    """Return the episode keys of an instance's reference trainings."""
    return [rng.derive(instance.seed, _REFERENCE, replicate) for replicate in range(REPLICATES)]


def _row_name(instance: Instance) -> str:
    """Name an instance by everything that it is: one that is not of the set may have an id of the set."""
    return f"{instance.id} {sha256_of(repr(instance).encode())[:16]}"
