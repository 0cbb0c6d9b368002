"""Blocks of trainings, run in this process or divided among several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self, final

from rlmix._workers import Workers
from rlmix.agents.agent import AbstractAgent
from rlmix.agents.jobs import Job, Split, run_block
from rlmix.agents.report import Run
from rlmix.envs.heldout import HeldOut
from rlmix.envs.instances import Instance, InstanceSet
from rlmix.envs.pool import Pool
from rlmix.policy.codec import AbstractCodec


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Venue:
    """Where trainings run, apart from what is trained.

    Attributes:
        horizon: H, decisions in a training.
        codec: what actions mean.
        with_validation: whether agents see statistics of the validation split.
        data_dir: folder of data sets that have to lie on disk.
        device: where the classifiers train.
    """

    horizon: int
    codec: AbstractCodec
    with_validation: bool = True
    data_dir: str | None = None
    device: str = "cpu"

    @property
    def key(self) -> tuple[int, str, bool, str | None, str]:
        """What venues that can share a pool have in common."""
        return self.horizon, self.codec.digest, self.with_validation, self.data_dir, self.device


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Jobs of one kind of training, which run side by side.

    Attributes:
        venue: where they run.
        agents: agents by name, at least those of the jobs.
        jobs: as `rlmix.agents.jobs.blocks` gives them.
        split: what is measured on.
    """

    venue: Venue
    agents: Mapping[str, AbstractAgent]
    jobs: Sequence[Job]
    split: Split = "test"


@final
class Runner:
    """Runs blocks of trainings; a context manager, since its processes must end.

    What a block gives does not depend on where it runs. Data sets and pools are kept from block to block.

    Args:
        processes: how many, at least 1; 1 runs everything in this one.

    Attributes:
        kept: what this process keeps from block to block.

    Raises:
        InputError: `processes` is below 1.
    """

    def __init__(self, processes: int = 1) -> None:
        self._workers = Workers(processes)
        self.kept = Kept()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._workers.__exit__(kind, error, trace)

    def run(self, blocks: Iterable[Block]) -> Iterator[list[Run]]:
        """Yield the runs of each block, in the blocks' order, as soon as they are there.

        Raises:
            EnvError: a process ended before its time.
            DataError: an instance's images are not there.
        """
        return self._workers.map(blocks, here=self.kept.run, there=_run)


@final
class Kept:
    """The pools and test images that blocks need, opened once for all that are alike."""

    def __init__(self) -> None:
        self._pools: dict[object, Pool] = {}
        self._heldout: dict[str | None, HeldOut] = {}

    def pool(self, venue: Venue, instance: Instance) -> Pool:
        """Return the pool at a venue; what is trained is said by `Pool.begin`, `instance` is an example."""
        if venue.key not in self._pools:
            self._pools[venue.key] = Pool(
                InstanceSet("evaluation", (replace(instance, total_steps=venue.horizon),), venue.horizon),
                seeds=[0],
                catalogue=venue.codec,
                reward=None,
                masks=False,
                with_validation=venue.with_validation,
                data_dir=venue.data_dir,
                device=venue.device,
            )
        return self._pools[venue.key]

    def run(self, block: Block) -> list[Run]:
        """Run a block here."""
        data_dir = block.venue.data_dir
        heldout = self._heldout.setdefault(data_dir, HeldOut(data_dir))
        pool = self.pool(block.venue, block.jobs[0].instance)
        return run_block(block.agents, block.jobs, pool, heldout=heldout, split=block.split)


# Of a process of its own, which ends with its runner.
_KEPT = Kept()


def _run(block: Block) -> list[Run]:
    return _KEPT.run(block)
