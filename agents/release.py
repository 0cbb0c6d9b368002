"""Making a policy ready to be handed on: its card says what it was measured to do, and where it should not be used."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlmix.agents.baselines.fixed import uniform_entry
from rlmix.agents.comparison import LEARNED
from rlmix.agents.page import Study
from rlmix.agents.results import Comparison, LevelResult
from rlmix.agents.statistics import Interval
from rlmix.envs.block import Library
from rlmix.envs.instances import Instance, InstanceSet, instance_set
from rlmix.errors import InputError
from rlmix.policy.artifact import LearnedPolicy
from rlmix.policy.limits import CARD_KEY, Facts, Limits

RESULTS = "results"
_DIGITS = 4


def released(
    policy: LearnedPolicy,
    results: Sequence[LevelResult],
    team: str,
    training: InstanceSet,
    *,
    provenance: Mapping[str, Any],
    notes: Mapping[str, Any] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> LearnedPolicy:
    """Return the policy with the results of a study and with limits on its card.

    Args:
        policy: one of the team's members.
        results: the levels of the study.
        team: what the policy's seeds are called there.
        training: the instances that it was trained on.
        provenance: of the study: command, commit, hardware, date and whatever else it tells.
        notes: what the card is to say besides, such as the hours that the training took.
        data_dir: where the images lie; the limits count classes and parameters.

    Raises:
        InputError: no level, or notes that would replace what is computed.
        UnknownNameError: no such team was evaluated.
        DataError: images are missing.
    """
    if not results:
        raise InputError("there is no level. A policy that nobody measured has no results to state.")
    taken = sorted(set(notes or {}) & {*policy.card, RESULTS, CARD_KEY})
    if taken:
        raise InputError(f"`notes` must not replace what the card says already, got `{taken[0]}`.")
    limits = limits_from(results, team, training, Library(policy.catalogue, data_dir, "cpu"))
    card = {
        **policy.card,
        **(notes or {}),
        RESULTS: {
            "what": "difference in accuracy on test images, policy minus baseline, in points: [mean, low, high] of a "
            "95 % interval",
            **provenance,
            "seeds": len(results[0].team(team).members),
            "levels": [_level(result, team) for result in results],
        },
        CARD_KEY: limits.to_json(),
    }
    return replace(policy, card=card)


def release(
    study: Study, training: InstanceSet | None = None, *, data_dir: str | os.PathLike[str] | None = None
) -> LearnedPolicy:
    """Return the policy of a study that was best on validation instances, with what the study says on its card.

    The results are those of all seeds together: which seed is handed on must not be chosen by them.

    Args:
        study: a finished study.
        training: the instances that the policies were trained on; None finds them by the settings on their cards.
        data_dir: where the images lie.

    Raises:
        InputError: policies of several instance sets, or another set than theirs.
        ConfigError: the recipe that the settings name is not there.
        DataError: images are missing.
    """
    best = max(study.trainings, key=lambda one: one.curve[-1][1])
    digests = {one.policy.card["instances"]["digest"] for one in study.trainings}
    known = instance_set(best.settings["instances"], "train") if training is None else training
    if digests != {known.digest}:
        raise InputError(
            f"the policies were trained on the sets {sorted(digest[:12] for digest in digests)}, the recipe gives "
            f"{known.digest[:12]}. Give trainings on one set, and the recipe as it was."
        )
    notes = {
        "selection": {
            "seed": best.seed,
            "of": sorted(one.seed for one in study.trainings),
            "by": "accuracy beside uniform random mixing on validation instances",
            "gains": {str(one.seed): _points(one.curve[-1][1]) for one in study.trainings},
        },
        "compute": {
            "hours": {str(one.seed): round(one.hours, 2) for one in study.trainings},
            "hardware": sorted(study.machines),
        },
    }
    provenance = study.report["provenance"]
    return released(best.policy, study.results, LEARNED, known, provenance=provenance, notes=notes, data_dir=data_dir)


def limits_from(results: Sequence[LevelResult], team: str, training: InstanceSet, library: Library) -> Limits:
    """Return where a policy was measured to do no harm, and what is safest elsewhere.

    The safest entry of the catalogue is the one whose worst level, beside uniform random mixing, is the best. The
    ranges are those of the training instances, and of each level on which the policy was not below that entry.

    Args:
        results: the levels of a study.
        team: what the policy's seeds are called there.
        training: the instances that it was trained on.
        library: gives the classes and parameters of instances.
    """
    catalogue = results[0].catalogue
    worst = dict.fromkeys(catalogue.names, math.inf)
    for result in results:
        accuracy = {row.to: row.to_accuracy for row in _rows(result, team)}
        for entry in catalogue.names:
            worst[entry] = min(worst[entry], accuracy[entry] - accuracy[uniform_entry(catalogue)])
    safest = max(worst, key=lambda entry: worst[entry])
    known: list[Instance] = list(training.instances)
    for result in results:
        if next(row for row in _rows(result, team) if row.to == safest).mean.estimate >= 0:
            known += result.instances
    return Limits(otherwise=safest, ranges=_ranges(map(library.facts, known)))


def _ranges(facts: Iterable[Facts]) -> dict[str, tuple[float, float]]:
    every = list(facts)
    return {name: (min(one[name] for one in every), max(one[name] for one in every)) for name in every[0]}


def _rows(result: LevelResult, team: str) -> list[Comparison]:
    result.team(team)
    return [row for row in result.comparisons() if row.agent == team]


def _level(result: LevelResult, team: str) -> dict[str, Any]:
    report = result.reports["steps"]
    return {
        "name": result.name,
        "instances": len(result.instances),
        "digest": report.digest,
        "replicates": len({run.replicate for run in report.runs}),
        "accuracy": _points(_rows(result, team)[0].accuracy),
        "to": {row.to: _interval(row.mean) for row in _rows(result, team)},
    }


def _interval(interval: Interval) -> list[float]:
    return [_points(value) for value in (interval.estimate, interval.low, interval.high)]


def _points(share: float) -> float:
    return round(100 * share, _DIGITS)
