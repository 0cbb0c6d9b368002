"""What the folder of a finished training tells: its policy, its settings, and how it learned."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlmix.agents.runs import POLICY
from rlmix.agents.validation import GAIN
from rlmix.errors import CheckpointError
from rlmix.policy.artifact import LearnedPolicy, load

_HOUR = 3600.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A finished training of an agent.

    Attributes:
        folder: where it lies.
        policy: what it learned.
        curve: after how many decisions, how far the policy's accuracy was above that of uniform random mixing, in
            [-1, 1], on validation instances; decisions ascend.
        hours: how long its sessions took together, from the first to the last entry of each one's event file.
    """

    folder: Path
    policy: LearnedPolicy
    curve: tuple[tuple[int, float], ...]
    hours: float

    @property
    def seed(self) -> int:
        """The training's seed."""
        return int(self.policy.card["seed"])

    @property
    def settings(self) -> Mapping[str, Any]:
        """What trains such a policy again, but for the seed; `rlmix agent train --config` reads it."""
        own = {name: value for name, value in self.policy.card["config"].items() if name != "seed"}
        return {**own, "timesteps": self.policy.card["timesteps"]}


def read_training(folder: str | os.PathLike[str]) -> Training:
    """Read the folder of a finished training of any agent that evaluates itself on validation instances.

    Raises:
        CheckpointError: there is no event file, or no evaluation in it.
        PolicyError: the training has not ended with a policy, or the policy is damaged.
    """
    policy, sessions = load(Path(folder) / POLICY), _sessions(Path(folder))
    # What an interrupted session had measured before it ended is measured again by the next, to the same values.
    curve = {event.step: event.value for session in sessions for event in _gains(session)}
    if not curve:
        raise CheckpointError(
            f"the event files in `{folder}` have no `{GAIN}`, the accuracy beside uniform random mixing. Give the "
            "folder of a training by `rlmix agent train`."
        )
    hours = sum(_seconds(session) for session in sessions) / _HOUR
    return Training(folder=Path(folder), policy=policy, curve=tuple(sorted(curve.items())), hours=hours)


def names_of(trainings: Sequence[Training]) -> list[str]:
    """Return what to call trainings in a figure: by their seeds, or by their folders where a seed comes twice."""
    seeds = [training.seed for training in trainings]
    if len(set(seeds)) == len(seeds):
        return [f"seed {seed}" for seed in seeds]
    return [training.folder.name for training in trainings]


def _sessions(folder: Path) -> list[EventAccumulator]:
    """Return the event files of a folder in the order of their beginnings."""
    # Their names start with the time.
    files = sorted(folder.glob("events.out.tfevents.*"))
    if not files:
        raise CheckpointError(
            f"`{folder}` has no TensorBoard event file, so how the agent learned is not known. Give the folder that "
            "`rlmix agent train --out` wrote."
        )
    # 0 keeps every scalar; of many some are else left out at random.
    return [EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload() for file in files]


def _gains(session: EventAccumulator) -> list[Any]:
    return list(session.Scalars(GAIN)) if GAIN in session.Tags()["scalars"] else []


def _seconds(session: EventAccumulator) -> float:
    ends = [session.Scalars(tag)[-1].wall_time for tag in session.Tags()["scalars"]]
    return float(max(ends) - session.FirstEventTimestamp()) if ends else 0.0
