"""What a study says: comparisons of agents level by level, as tables, CSV and JSON."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, final

import numpy as np
from rich.console import Console
from rich.table import Table

from rlmix.agents.agent import AbstractAgent
from rlmix.agents.baselines.fixed import uniform_entry
from rlmix.agents.report import Report, budget_ranges
from rlmix.agents.statistics import (
    Floats,
    Interval,
    hierarchical_bootstrap,
    holm,
    improvements,
    iqm,
    mean,
    worst_decile,
)
from rlmix.envs.instances import Instance
from rlmix.envs.reward import LIMIT, SCALE
from rlmix.errors import UnknownNameError, nearest
from rlmix.policy.codec import Catalogue

# What stands behind a member's name where its choices were replayed, or drawn from their frequencies.
REPLAYED = "~replayed"
STATIC = "~static"

# A stratum of fewer instances could hardly be resampled; it joins the others of its kind.
_STRATUM = 5
# A percentile interval over fewer independent units covers clearly less than it says.
FEW = 10
_INTERVALS = ("iqm", "mean", "improvement", "worst", "z_iqm", "z_mean", "ts_nll", "ece")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """Agents that are one policy, trained with several seeds.

    Attributes:
        name: what they are called together.
        members: the agents by their own names.
        observes: whether what they choose may depend on what they see.
    """

    name: str
    members: Mapping[str, AbstractAgent]
    observes: bool


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How a team does beside one baseline on one level; differences are team minus baseline, run by paired run.

    Attributes:
        level: name of the level.
        condition: "steps", "no-validation" or "time".
        agent: name of the team.
        to: name of the baseline.
        accuracy: mean accuracy of the team.
        to_accuracy: mean accuracy of the baseline.
        iqm: interquartile mean over instances of the difference in accuracy.
        mean: its mean.
        p: two-sided p-value of "the interquartile mean is 0".
        p_holm: the same, adjusted for all baselines of the team on this level and condition; its two ablations are no
            baselines, and are adjusted for each other.
        improvement: probability that a run of the team beats the paired run of the baseline, ties counted half.
        worst: mean of the difference over the tenth of the instances where it is lowest.
        z_iqm: interquartile mean of the difference in Z, the environment's reward measured on these images.
        z_mean: its mean.
        ts_nll: mean difference in negative log-likelihood at the best temperature; below 0 is better.
        ece: mean difference in expected calibration error; below 0 is better.
    """

    level: str
    condition: str
    agent: str
    to: str
    accuracy: float
    to_accuracy: float
    iqm: Interval
    mean: Interval
    p: float
    p_holm: float
    improvement: Interval
    worst: Interval
    z_iqm: Interval
    z_mean: Interval
    ts_nll: Interval
    ece: Interval

    def flat(self) -> dict[str, str | float]:
        """Return one value a column, as in a CSV file."""
        row: dict[str, str | float] = {
            name: getattr(self, name)
            for name in ("level", "condition", "agent", "to", "accuracy", "to_accuracy", "p", "p_holm")
        }
        for name in _INTERVALS:
            interval = getattr(self, name)
            row |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
        return row


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LevelResult:
    """All runs on one level, and what they say.

    Attributes:
        name: what the level is called.
        instances: the held-out instances.
        catalogue: what all agents choose from.
        teams: the agents that are not fixed ones of the catalogue.
        reports: the runs by condition.
    """

    name: str
    instances: tuple[Instance, ...]
    catalogue: Catalogue
    teams: tuple[Team, ...]
    reports: Mapping[str, Report]
    _compared_before: dict[str, tuple[Comparison, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def team(self, name: str) -> Team:
        """Return the team called `name`.

        Raises:
            UnknownNameError: there is none.
        """
        for team in self.teams:
            if team.name == name:
                return team
        raise UnknownNameError(f"No team `{name}` was evaluated. {nearest(name, [team.name for team in self.teams])}")

    def comparisons(self, condition: str = "steps") -> tuple[Comparison, ...]:
        """Compare each team with every baseline, every other team and its own ablations.

        Instances are resampled within strata: kinds of training and ranges of budgets; those of fewer than five
        instances are put together.

        Args:
            condition: one of `reports`.
        """
        # Tables, files and figures ask for the same numbers.
        if condition not in self._compared_before:
            self._compared_before[condition] = self._comparisons(condition)
        return self._compared_before[condition]

    def _comparisons(self, condition: str) -> tuple[Comparison, ...]:
        report = self.reports[condition]
        groups = self._groups(report)
        values = {name: self._values(report, members) for name, members in groups.items()}
        strata = self.strata()
        found: list[Comparison] = []
        for team in self.teams:
            ablations = [f"{team.name}{mark}" for mark in (REPLAYED, STATIC) if f"{team.name}{mark}" in groups]
            baselines = [name for name in groups if name != team.name and not name.endswith((REPLAYED, STATIC))]
            for others in (baselines, ablations):
                rows = [
                    self._compared(
                        condition, (team.name, values[team.name]), (name, values[name]), strata, others is ablations
                    )
                    for name in others
                ]
                adjusted = holm([row["p"] for row in rows])
                found.extend(Comparison(**row, p_holm=p) for row, p in zip(rows, adjusted, strict=True))
        return tuple(found)

    def strata(self) -> list[str]:
        """Return for each instance the stratum that it is resampled in."""
        ranges = budget_ranges(self.reports["steps"].runs)
        labels = []
        for instance in self.instances:
            epochs = instance.total_steps * instance.batch_size / instance.train_size
            budget = ranges.bucket(steps=instance.total_steps, epochs=epochs)
            labels.append(" ".join(map(str, (*instance.pictures, instance.classes, instance.model, budget))))
        return [label if labels.count(label) >= _STRATUM else "others" for label in labels]

    def table(self, condition: str = "steps") -> Table:
        """Return the comparisons for printing, in points of a hundred.

        Args:
            condition: one of `reports`.
        """
        return _table(self, condition, self.comparisons(condition))

    def _groups(self, report: Report) -> dict[str, list[str]]:
        """Return the columns of the report, those of the catalogue first, and members of a team together."""
        teams: dict[str, list[str]] = {}
        for team in self.teams:
            for mark in ("", REPLAYED, STATIC):
                members = [f"{member}{mark}" for member in team.members]
                if set(members) <= set(report.agents):
                    teams[f"{team.name}{mark}"] = members
        known = set(itertools.chain.from_iterable(teams.values()))
        return {agent: [agent] for agent in report.agents if agent not in known} | teams

    def _values(self, report: Report, members: Sequence[str]) -> dict[str, Floats]:
        """Return what was measured, each [instances, members, replicates]."""
        reference = measured(report, [uniform_entry(self.catalogue)], "score").mean(axis=2, keepdims=True)
        found = {name: measured(report, members, name) for name in ("accuracy", "score", "ts_nll", "ece")}
        return found | {"z": np.clip((found["score"] - reference) / SCALE, -LIMIT, LIMIT)}

    def _compared(
        self,
        condition: str,
        own: tuple[str, Mapping[str, Floats]],
        other: tuple[str, Mapping[str, Floats]],
        strata: Sequence[str],
        paired: bool,
    ) -> dict[str, Any]:
        """Return the fields of a comparison but the adjusted p-value."""
        pairs = {name: _paired(own[1][name], other[1][name], together=paired) for name in own[1]}
        drawn = {
            name: hierarchical_bootstrap(pairs[name][0] - pairs[name][1], strata)
            for name in ("accuracy", "z", "ts_nll", "ece")
        }
        better = hierarchical_bootstrap(improvements(*pairs["accuracy"]), strata)
        return {
            "level": self.name,
            "condition": condition,
            "agent": own[0],
            "to": other[0],
            "accuracy": float(own[1]["accuracy"].mean()),
            "to_accuracy": float(other[1]["accuracy"].mean()),
            "iqm": drawn["accuracy"].interval(iqm),
            "mean": drawn["accuracy"].interval(mean),
            "p": drawn["accuracy"].p_value(iqm),
            "improvement": better.interval(mean),
            "worst": drawn["accuracy"].interval(worst_decile),
            "z_iqm": drawn["z"].interval(iqm),
            "z_mean": drawn["z"].interval(mean),
            "ts_nll": drawn["ts_nll"].interval(mean),
            "ece": drawn["ece"].interval(mean),
        }


def comparisons_csv(comparisons: Sequence[Comparison]) -> str:
    """Return comparisons as CSV text with a header line; differences are shares, not points."""
    text = io.StringIO()
    rows = [comparison.flat() for comparison in comparisons]
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["level"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def tables_text(results: Sequence[LevelResult], *, width: int = 150) -> str:
    """Return all tables of all levels and conditions as plain text."""
    console = Console(width=width, file=io.StringIO(), record=True, soft_wrap=False)
    for result in results:
        for condition in result.reports:
            console.print(result.table(condition))
    return console.export_text()


def document(results: Sequence[LevelResult]) -> list[dict[str, Any]]:
    """Return all comparisons as JSON takes them, level by level; differences are shares, not points."""
    return [
        {
            "name": result.name,
            "instances": result.reports["steps"].instances,
            "digest": result.reports["steps"].digest,
            "count": len(result.instances),
            "conditions": {
                condition: [asdict(comparison) for comparison in result.comparisons(condition)]
                for condition in result.reports
            },
        }
        for result in results
    ]


def _table(result: LevelResult, condition: str, comparisons: Sequence[Comparison]) -> Table:
    runs = len(result.instances), len({run.replicate for run in result.reports[condition].runs})
    # What is drawn again and again: instances, or of a single one its replicates.
    few = "; too few to trust intervals and p" if (runs[0] if runs[0] > 1 else runs[1]) < FEW else ""
    table = Table(
        title=f"{result.name}, {condition}: differences in accuracy on test images, in points [95 % interval]",
        caption=f"instances: {runs[0]}, replicates: {runs[1]}{few}; p by Holm over the baselines of one agent",
    )
    for heading in ("agent", "to"):
        table.add_column(heading, no_wrap=True)
    for heading in ("accuracy", "IQM difference", "mean difference", "p", "P(better)", "worst tenth"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in comparisons:
        table.add_row(
            row.agent,
            row.to,
            f"{100 * row.accuracy:.2f} / {100 * row.to_accuracy:.2f}",
            _points(row.iqm),
            _points(row.mean),
            f"{row.p_holm:.4f}",
            f"{row.improvement.estimate:.2f} [{row.improvement.low:.2f}, {row.improvement.high:.2f}]",
            f"{100 * row.worst.estimate:+.2f}",
        )
    return table


def measured(report: Report, members: Sequence[str], name: str) -> Floats:
    """Return one field of the members' runs, float64 [instances, members, replicates]."""
    columns = []
    for member in members:
        rows: dict[str, list[float]] = {}
        for run in report.of(member):
            rows.setdefault(run.instance, []).append(getattr(run, name))
        columns.append(np.array(list(rows.values()), dtype=np.float64))
    return np.stack(columns, axis=1)


def _paired(first: Floats, second: Floats, *, together: bool) -> tuple[Floats, Floats]:
    """Return two agents' values with axes that fit: member by member if they belong together, else each with each."""
    if together or second.shape[1] == 1:
        return first, second
    return first[:, :, None, :], second[:, None, :, :]


def _points(interval: Interval) -> str:
    return f"{100 * interval.estimate:+.2f} [{100 * interval.low:+.2f}, {100 * interval.high:+.2f}]"
