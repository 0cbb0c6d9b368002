"""A pool whose slots are divided among processes, for machines with several cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlmix._workers import as_worker
from rlmix.envs.block import Slot
from rlmix.envs.instances import InstanceSet
from rlmix.envs.pool import Pool, Reward
from rlmix.errors import EnvError
from rlmix.policy import signals
from rlmix.policy.codec import AbstractCodec, Catalogue, codec_of

Numbers: TypeAlias = npt.NDArray[Any]

# Seconds in which a process that was killed is gone.
_PATIENCE = 0.5


@final
class ProcessPool:
    """N trainings that begin and end together, as a `Pool` of the same seeds makes them, in several processes.

    What a slot does follows from its seed and the wave alone, so the division changes nothing but the time. Each
    process holds the data sets of its own.

    Args:
        processes: how many, at least 1; never more than slots.
        instances: as `Pool` takes it, like all others.
        seeds: one for each slot.
        catalogue: what actions mean.
        reward: "reference" or None.
        masks: whether observations hide sources at random.
        with_validation: whether observations show the validation images at all.
        data_dir: where data sets lie.
        device: where classifiers train.

    Raises:
        EnvError: `processes` is below 1, or what `Pool` raises.
    """

    def __init__(
        self,
        processes: int,
        instances: InstanceSet,
        *,
        seeds: Sequence[int],
        catalogue: Catalogue | AbstractCodec,
        reward: Reward = "reference",
        masks: bool = True,
        with_validation: bool = True,
        data_dir: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if processes < 1:
            raise EnvError(f"`processes` must be at least 1, got {processes}.")
        self.instances, self.codec = instances, codec_of(catalogue)
        self.catalogue, self.horizon = self.codec.catalogue, instances.horizon
        self.observation_names = signals.names(self.catalogue)
        self._seeds, self._wave, self._slots = tuple(seeds), 0, tuple[Slot, ...]()
        self._decision = self.horizon
        # Neighbouring seeds meet different kinds of trainings, so every process gets some of each.
        self._rows = [list(range(first, len(seeds), processes)) for first in range(min(processes, len(seeds)))]
        # A child of `fork` would share locks and threads of torch with its parent.
        context = multiprocessing.get_context("spawn")
        shared = {
            "catalogue": self.codec,
            "reward": reward,
            "masks": masks,
            "with_validation": with_validation,
            "data_dir": data_dir,
            "device": str(device),
        }
        self._workers: list[tuple[multiprocessing.process.BaseProcess, Connection]] = []
        for rows in self._rows:
            ours, theirs = context.Pipe()
            arguments = {"instances": instances, "seeds": [self._seeds[row] for row in rows], **shared}
            worker = context.Process(target=_work, args=(theirs, arguments), daemon=True)
            worker.start()
            theirs.close()
            self._workers.append((worker, ours))
        self._asked("seeds", [()] * len(self._workers))

    @property
    def seeds(self) -> tuple[int, ...]:
        """What the slots pick by."""
        return self._seeds

    @property
    def wave(self) -> int:
        """The wave that the next `reset` begins."""
        return self._wave

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The trainings of this wave."""
        return self._slots

    @property
    def decision(self) -> int:
        """How many decisions of this wave are made, in [0, H]; H also before the first wave."""
        return self._decision

    def seed(self, seeds: Sequence[int], wave: int = 0) -> None:
        """Give the slots new seeds and say which wave the next `reset` begins.

        Raises:
            EnvError: not one seed for each slot, or one out of range.
        """
        if len(seeds) != len(self._seeds):
            raise EnvError(f"`seeds` must be one for each of {len(self._seeds)} slots, got {len(seeds)}.")
        self._asked("seed", [([seeds[row] for row in rows], wave) for rows in self._rows])
        self._seeds, self._wave = tuple(seeds), wave

    def reset(self, seeds: Sequence[int] | None = None, instances: Sequence[str | None] | None = None) -> Tensor:
        """Begin the next wave; as `Pool.reset`, for as many slots as there are."""
        if seeds is not None:
            self.seed(seeds)
        given = [None] * len(self._seeds) if instances is None else list(instances)
        if len(given) != len(self._seeds):
            raise EnvError(f"`instances` must be one for each of {len(self._seeds)} slots, got {len(given)}.")
        found = self._asked("reset", [([given[row] for row in rows],) for rows in self._rows])
        self._wave, self._decision = self._wave + 1, 0
        self._slots = tuple(self._joined([slots for _, slots in found]))
        return torch.from_numpy(self._stacked([observations for observations, _ in found]))

    def step(self, actions: Tensor | npt.NDArray[Any] | Sequence[Any]) -> tuple[Tensor, Tensor, bool, dict[str, Any]]:
        """Train all slots until their next decision; as `Pool.step`."""
        given = actions.detach().cpu().numpy() if isinstance(actions, Tensor) else np.asarray(actions)
        if given.shape[:1] != (len(self._seeds),):
            raise EnvError(f"`actions` must be one for each of {len(self._seeds)} slots, got shape {given.shape}.")
        found = self._asked("step", [(given[rows],) for rows in self._rows])
        self._decision += 1
        observations, rewards, ends, infos = zip(*found, strict=True)
        info: dict[str, Any] = {}
        for name, value in infos[0].items():
            parts = [one[name] for one in infos]
            numbers = isinstance(value, np.ndarray)
            info[name] = torch.from_numpy(self._stacked(parts)) if numbers else tuple(self._joined(parts))
        return torch.from_numpy(self._stacked(observations)), torch.from_numpy(self._stacked(rewards)), ends[0], info

    def close(self) -> None:
        """End the processes."""
        for worker, connection in self._workers:
            connection.close()
            worker.terminate()
            worker.join()
        self._workers = []

    def _asked(self, what: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Ask every process the same with arguments of its own, and return the answers."""
        if not self._workers:
            raise EnvError("the processes of this pool have ended. Open another.")
        try:
            for (_, connection), given in zip(self._workers, arguments, strict=True):
                connection.send((what, given))
            answers = [connection.recv() for _, connection in self._workers]
        except (EOFError, OSError) as error:
            for worker, _ in self._workers:
                worker.join(_PATIENCE)
            codes = [worker.exitcode for worker, _ in self._workers if worker.exitcode is not None]
            self.close()
            raise EnvError(
                f"a process of the pool ended with exit code {codes[0] if codes else 'unknown'}. Was it out of memory? "
                "Use fewer `processes`."
            ) from error
        # All have answered before one of them may stop the run: none waits for a reader then.
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers

    def _joined(self, parts: Sequence[Sequence[Any]]) -> list[Any]:
        """Put the rows of the processes at their places."""
        joined: list[Any] = [None] * len(self._seeds)
        for rows, values in zip(self._rows, parts, strict=True):
            for row, value in zip(rows, values, strict=True):
                joined[row] = value
        return joined

    def _stacked(self, parts: Sequence[Numbers]) -> Numbers:
        """Put the rows of the processes at their places."""
        joined = np.concatenate(parts)
        placed = np.empty_like(joined)
        placed[[row for rows in self._rows for row in rows]] = joined
        return placed


def _work(connection: Connection, arguments: dict[str, Any]) -> None:
    """Answer for some of the slots, until nobody asks any more."""
    as_worker()
    pool: Pool | None = None
    while True:
        try:
            what, given = connection.recv()
        except (EOFError, OSError):
            return
        try:
            if pool is None:
                pool = Pool(**arguments)
            connection.send(_answer(pool, what, given))
        except Exception as error:
            # Raised where it was asked.
            connection.send(error)


def _answer(pool: Pool, what: str, given: tuple[Any, ...]) -> Any:
    if what == "reset":
        return _on_host(pool.reset(instances=given[0])), pool.slots
    if what == "step":
        observations, rewards, done, info = pool.step(*given)
        told = {name: _on_host(value) if isinstance(value, Tensor) else value for name, value in info.items()}
        return _on_host(observations), _on_host(rewards), done, told
    if what == "seed":
        pool.seed(*given)
    return pool.seeds


def _on_host(values: Tensor) -> Numbers:
    """Return values as what is sent whole: tensors would be sent as files in memory that someone must close."""
    numbers: Numbers = values.detach().cpu().numpy()
    return numbers
