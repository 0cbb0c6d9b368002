"""Runs of an evaluation, the comparison of agents over instances, and the baselines that are chosen from them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any, final

import numpy as np
import numpy.typing as npt
from rich.table import Table

from rlmix.agents.baselines.fixed import BudgetLookup, BudgetRanges
from rlmix.agents.statistics import Interval, improvements, iqm, mean, stratified_bootstrap
from rlmix.errors import InputError, UnknownNameError, nearest

_SCHEMA = "rlmix.report/1"
# Up to so many distinct budgets stand for themselves; more are grouped by terciles of epochs.
_FEW_BUDGETS = 4


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training: which instance, who chose the mixing, and how good the classifier became.

    Attributes:
        instance: id of the instance.
        agent: name of the agent.
        replicate: number of the repetition; the runs of one instance and replicate share all random numbers.
        total_steps: budget in optimiser steps.
        epochs: budget in passes over the training images.
        accuracy: share of the images classified correctly.
        score: accuracy and calibrated likelihood in one number, as the environment's reward has it.
        ts_nll: negative log-likelihood of the labels at the best temperature.
        ece: expected calibration error of the classifier as it is, in [0, 1]; None where it was not measured, which is
            on images other than test images.
        actions: names of the entries, one a decision.
    """

    instance: str
    agent: str
    replicate: int
    total_steps: int
    epochs: float
    accuracy: float
    score: float
    ts_nll: float
    ece: float | None
    actions: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How an agent compares with the reference, over instances.

    Attributes:
        agent: name of the agent.
        accuracy: mean accuracy of the agent.
        mean: mean difference in accuracy to the reference.
        iqm: interquartile mean of the differences.
        improvement: probability that a run of the agent beats the paired run of the reference, ties counted half.
    """

    agent: str
    accuracy: float
    mean: Interval
    iqm: Interval
    improvement: Interval


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All runs of an evaluation, and what they say.

    Attributes:
        instances: name of the instance set.
        digest: digest of the instance set.
        seed: seed that the episode keys are derived from.
        split: the images that were measured on, "test" or "reward" (held-out training images).
        with_validation: whether agents saw statistics of a validation split.
        runs: the runs; each agent has one for every instance and replicate, in the same order.
    """

    instances: str
    digest: str
    seed: int
    split: str
    with_validation: bool
    runs: tuple[Run, ...]

    @property
    def agents(self) -> tuple[str, ...]:
        """Names of the agents, in the order of their first runs."""
        return tuple(dict.fromkeys(run.agent for run in self.runs))

    def of(self, agent: str) -> tuple[Run, ...]:
        """Return the runs of one agent.

        Raises:
            UnknownNameError: no such agent was evaluated.
        """
        runs = tuple(run for run in self.runs if run.agent == agent)
        if not runs:
            raise UnknownNameError(f"No agent `{agent}` was evaluated. {nearest(agent, self.agents)}")
        return runs

    def copied(self, name: str, entry_of: Callable[[Run], str]) -> Report:
        """Return the report with one agent more, whose runs are those of the agents that `entry_of` names.

        An agent that holds one entry for a whole training gets, bit for bit, the run that the fixed agent of that
        entry got, so there is nothing to train again.

        Args:
            name: name of the new agent.
            entry_of: maps a run to the name of an evaluated agent; it may look at the instance and its budget.

        Raises:
            UnknownNameError: `entry_of` names an agent that was not evaluated.
        """
        known = {(run.instance, run.replicate, run.agent): run for run in self.runs}
        new = []
        for run in self.of(self.agents[0]):
            chosen = entry_of(run)
            self.of(chosen)
            new.append(replace(known[run.instance, run.replicate, chosen], agent=name))
        return replace(self, runs=(*self.runs, *new))

    def differences(self, to: str) -> tuple[Difference, ...]:
        """Compare every agent with the agent `to`, run by paired run; best mean accuracy first.

        The unit of resampling is the instance (the mean over its replicates); the strata are the budgets.

        Raises:
            UnknownNameError: no agent `to` was evaluated.
        """
        reference, ranges = self._accuracies(to), budget_ranges(self.runs)
        firsts = {run.instance: run for run in self.of(to)}.values()
        strata = [ranges.bucket(steps=run.total_steps, epochs=run.epochs) for run in firsts]
        found = []
        for agent in self.agents:
            own = self._accuracies(agent)
            gains = mean(own - reference)
            found.append(
                Difference(
                    agent=agent,
                    accuracy=float(own.mean()),
                    mean=stratified_bootstrap(gains, strata, mean),
                    iqm=stratified_bootstrap(gains, strata, iqm),
                    improvement=stratified_bootstrap(mean(improvements(own, reference)), strata, mean),
                )
            )
        return tuple(sorted(found, key=lambda difference: -difference.accuracy))

    def table(self, to: str) -> Table:
        """Return a table for printing: accuracy and differences to the agent `to`, in points of a hundred.

        Raises:
            UnknownNameError: no agent `to` was evaluated.
        """
        runs = self.of(to)
        table = Table(
            title=f"Accuracy ({self.split} images) and difference to {to}, in points [95 % interval]",
            caption=f"{self.instances}: {len({run.instance for run in runs})} instances, {len(runs)} runs each",
        )
        table.add_column("agent", no_wrap=True)
        for heading in ("accuracy", "mean difference", "IQM difference", "P(better)"):
            table.add_column(heading, justify="right")
        for row in self.differences(to):
            numbers = [f"{100 * row.accuracy:.2f}", _points(row.mean), _points(row.iqm), _share(row.improvement)]
            table.add_row(row.agent, *numbers)
        return table

    def to_json(self, to: str) -> dict[str, Any]:
        """Return the comparison with the agent `to` as a JSON document (the runs themselves are in `csv`).

        Raises:
            UnknownNameError: no agent `to` was evaluated.
        """
        return {
            "schema": _SCHEMA,
            "instances": self.instances,
            "digest": self.digest,
            "seed": self.seed,
            "split": self.split,
            "with_validation": self.with_validation,
            "runs": len(self.runs),
            "reference": to,
            "differences": [asdict(difference) for difference in self.differences(to)],
        }

    def csv(self) -> str:
        """Return the runs as CSV text with a header line; actions are joined by spaces."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = [field.name for field in fields(Run)]
        writer.writerow(names)
        for run in self.runs:
            row = {**asdict(run), "actions": " ".join(run.actions)}
            writer.writerow([row[name] for name in names])
        return text.getvalue()

    def _accuracies(self, agent: str) -> npt.NDArray[np.float64]:
        """Return the accuracies of `agent`, float64 [instances, replicates]."""
        rows: dict[str, list[float]] = {}
        for run in self.of(agent):
            rows.setdefault(run.instance, []).append(run.accuracy)
        return np.array(list(rows.values()), dtype=np.float64)


def budget_ranges(runs: Iterable[Run]) -> BudgetRanges:
    """Return the ranges of budgets that the runs fall into: each budget of a few, else terciles of epochs."""
    firsts = list({run.instance: run for run in runs}.values())
    steps = sorted({run.total_steps for run in firsts})
    if len(steps) <= _FEW_BUDGETS:
        # Between two budgets the geometric mean divides, as budgets differ by factors.
        bounds = tuple(math.sqrt(low * high) for low, high in pairwise(steps))
        return BudgetRanges(measure="steps", bounds=bounds)
    terciles = np.unique(np.quantile([run.epochs for run in firsts], [1 / 3, 2 / 3]))
    return BudgetRanges(measure="epochs", bounds=tuple(terciles.tolist()))


def best_fixed(report: Report, entries: Collection[str]) -> str:
    """Return the entry among `entries` whose fixed agent has the highest mean accuracy in `report`.

    Args:
        report: an evaluation on validation instances; agents that are none of `entries` are passed over.
        entries: names of the fixed agents, as a rule those of the catalogue.

    Raises:
        InputError: none of `entries` was evaluated.
    """
    return _best(report.runs, entries)


def best_fixed_per_budget(report: Report, entries: Collection[str]) -> BudgetLookup:
    """Return for each range of budgets the entry with the highest mean accuracy there.

    Args:
        report: an evaluation on validation instances.
        entries: names of the fixed agents, as a rule those of the catalogue.

    Raises:
        InputError: none of `entries` was evaluated.
    """
    ranges = budget_ranges(report.runs)
    groups: list[list[Run]] = [[] for _ in range(len(ranges.bounds) + 1)]
    for run in report.runs:
        groups[ranges.bucket(steps=run.total_steps, epochs=run.epochs)].append(run)
    # Ties of quantiles can leave a range without a run; it then gets the best entry overall.
    return BudgetLookup(ranges=ranges, entries=tuple(_best(group or report.runs, entries) for group in groups))


def best_in_other_replicates(
    report: Report, entries: Collection[str], *, seen: int | None = None
) -> dict[tuple[str, int], str]:
    """Return, by instance and replicate, the entry with the highest mean accuracy in the instance's other replicates.

    Args:
        report: an evaluation with two replicates or more.
        entries: names of the fixed agents, as a rule those of the catalogue.
        seen: how many of the others count, those that follow in order, the first after the last; None for all.

    Raises:
        InputError: none of `entries` was evaluated, or there is one replicate only.
    """
    groups: dict[str, list[Run]] = {}
    for run in report.runs:
        groups.setdefault(run.instance, []).append(run)
    chosen = {}
    for instance, runs in groups.items():
        replicates = sorted({run.replicate for run in runs})
        if len(replicates) < 2:
            raise InputError(
                "the unbiased oracle needs `replicates` of at least 2: it chooses by one and is judged by another."
            )
        for place, own in enumerate(replicates):
            others = [*replicates[place + 1 :], *replicates[:place]][:seen]
            chosen[instance, own] = _best((run for run in runs if run.replicate in others), entries)
    return chosen


def _best(runs: Iterable[Run], entries: Collection[str]) -> str:
    accuracies: dict[str, list[float]] = {}
    for run in runs:
        if run.agent in entries:
            accuracies.setdefault(run.agent, []).append(run.accuracy)
    if not accuracies:
        raise InputError(f"None of the fixed agents {', '.join(entries)} was evaluated. Evaluate them first.")
    return max(accuracies, key=lambda agent: float(np.mean(accuracies[agent])))


def _points(interval: Interval) -> str:
    return f"{100 * interval.estimate:+.2f} [{100 * interval.low:+.2f}, {100 * interval.high:+.2f}]"


def _share(interval: Interval) -> str:
    return f"{interval.estimate:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
