"""Looking at a training of an agent: what it chooses from, and how good it is on validation instances."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Mapping
from typing import final

import torch

from rlmix._mix import mix
from rlmix.agents.agent import AbstractAgent, LearnedAgent
from rlmix.agents.baselines.fixed import FixedAgent, uniform_entry
from rlmix.agents.evaluate import evaluate
from rlmix.agents.report import Report
from rlmix.agents.statistics import iqm
from rlmix.envs.instances import Instance, InstanceSet
from rlmix.envs.reward import relative
from rlmix.monitor.board import Board
from rlmix.ops.rng import Streams
from rlmix.policy.artifact import LearnedPolicy
from rlmix.policy.codec import AbstractCodec, Catalogue, codec_of
from rlmix.policy.signals import names
from rlmix.training.data import load

# Images that each entry is shown on.
_IMAGES = 3
SHARE, GAIN = "eval/largest_share", "eval/accuracy_to_uniform"
# A policy that chooses one method so often has collapsed.
_ONE_METHOD = 0.95
_LOGGER = logging.getLogger("rlmix")
# Keeps the saliency of a black image from being zero everywhere.
_FLOOR = 1e-3


@final
class Validation:
    """Compares policies with uniform random mixing, in the same trainings each time.

    Measured is on the instances' reward split: test images are for results only.

    Args:
        instances: validation instances.
        catalogue: what the policies' actions mean: a catalogue or another codec, with a uniform mixture.
        seed: seed of the episodes.
        device: where the classifiers train.
        data_dir: folder of data sets that have to lie on disk.
    """

    def __init__(
        self,
        instances: InstanceSet,
        catalogue: Catalogue | AbstractCodec,
        *,
        seed: int,
        device: str | torch.device,
        data_dir: str | os.PathLike[str] | None,
    ) -> None:
        self._instances, self._codec, self._seed = instances, codec_of(catalogue), seed
        self._device, self._data_dir = device, data_dir
        self._uniform: Report | None = None

    def __call__(self, policy: LearnedPolicy) -> Mapping[str, float]:
        """Return numbers by tag: accuracy, its difference to uniform random mixing, the score as a reward.

        And the share of all decisions that went to the method chosen most often.
        """
        if self._uniform is None:
            # The episodes are the same every time, so these are trained only once.
            entries = self._codec.catalogue
            self._uniform = self._evaluate(FixedAgent(uniform_entry(entries), entries), entries)
        learned = self._evaluate(LearnedAgent(policy, names(self._codec.catalogue)), self._codec)
        accuracy, reference = (_column(report, "accuracy") for report in (learned, self._uniform))
        scores = relative(_column(learned, "score"), _column(self._uniform, "score"))
        methods = Counter(self._method(action) for run in learned.runs for action in run.actions)
        return {
            SHARE: max(methods.values()) / methods.total(),
            "eval/accuracy": accuracy.mean().item(),
            GAIN: (accuracy - reference).mean().item(),
            "eval/accuracy_to_uniform_iqm": float(iqm((accuracy - reference).numpy())),
            "eval/score": scores.mean().item(),
        }

    def _method(self, action: str) -> str:
        """Return the method that a recorded action chose: an entry's, or that of a Decision's text."""
        entries = self._codec.catalogue
        known = action in entries.names
        return entries.decisions[entries.index(action)].method if known else action.partition("(")[0]

    def _evaluate(self, agent: AbstractAgent, catalogue: Catalogue | AbstractCodec) -> Report:
        return evaluate(
            {"agent": agent},
            self._instances,
            catalogue=catalogue,
            seed=self._seed,
            split="reward",
            data_dir=self._data_dir,
            device=self._device,
        )


@final
class CollapseAlarm:
    """Says so when a policy has come down to one method while it falls behind uniform random mixing.

    A policy that always chooses one method may be right: where that method wins everywhere, there is nothing else to
    learn. It is wrong where random choice does better, and more so from evaluation to evaluation.

    Args:
        board: where it is written: `alarm/collapse` is 1 then, else 0.
    """

    def __init__(self, board: Board) -> None:
        self._board, self._before = board, math.inf

    def __call__(self, step: int, statistics: Mapping[str, float]) -> bool:
        """Look at what `Validation` measured after `step` decisions, and return whether the alarm is given."""
        share, gain = statistics[SHARE], statistics[GAIN]
        given = share >= _ONE_METHOD and gain < 0 and gain < self._before < math.inf
        self._board.scalars(step, {"alarm/collapse": float(given)})
        if given:
            text = (
                f"the policy chooses one method in {share:.0%} of its decisions and is {-100 * gain:.2f} points behind "
                f"uniform random mixing, {100 * (self._before - gain):.2f} more than at the last evaluation. Is there "
                "another winner in the training set? Try more entropy, or a wider set of instances."
            )
            self._board.text(step, "alarm", text)
            _LOGGER.warning("after %d decisions %s", step, text)
        self._before = gain
        return given


def draw_entries(
    board: Board, catalogue: Catalogue, instance: Instance, data_dir: str | os.PathLike[str] | None
) -> None:
    """Write a grid of images, each mixed by one entry of the catalogue, with their soft labels.

    There is no classifier yet whose saliency could be asked, so brightness stands in for it.

    Raises:
        DataError: the images are missing.
    """
    arrays = load(instance.data, data_dir)
    images, labels = arrays.train_images[:_IMAGES], arrays.train_labels[:_IMAGES]
    batches = [
        mix(
            images,
            labels,
            decision.build(),
            num_classes=arrays.num_classes,
            generator=Streams([0]),
            saliency=images.mean(1) + _FLOOR,
        )
        for decision in catalogue.decisions
    ]
    board.mixed(
        0,
        torch.cat([batch.images for batch in batches]),
        torch.cat([batch.targets for batch in batches]),
        arrays.classes,
        tag="mixed/entries",
        titles=[name for name in catalogue.names for _ in range(_IMAGES)],
        most=len(batches) * _IMAGES,
    )


def _column(report: Report, name: str) -> torch.Tensor:
    return torch.tensor([getattr(run, name) for run in report.runs], dtype=torch.float64)
