"""Figures of a whole study: how agents learned, what they choose, and how far they are ahead of what they must beat."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rlmix._files import write_bytes
from rlmix.agents.baselines.fixed import uniform_entry
from rlmix.agents.comparison import BEST_FIXED, BEST_PER_BUDGET, ORACLE, ORACLE_OF_ONE
from rlmix.agents.report import Run
from rlmix.agents.results import Comparison, LevelResult, measured
from rlmix.agents.statistics import Floats, performance_profile
from rlmix.errors import InputError
from rlmix.monitor.figures import GRID, INK, NOTE, PALETTE, SMALLEST_SHARE, UNMIXED, colours, png, tidy

# Inches; on a page 800 pixels wide a text of 10 points is then 14 pixels high.
_WIDTH = 8.0
_POINTS = 100.0
_THRESHOLDS = 201
_NOISES = (0.0, 0.1, 0.2, 0.3)
# A share below this has no room for its name.
_NAMED = 0.09
_DARK = 0.45
_SEEDS = "each agent seed"

WORDS = {
    BEST_FIXED: "best fixed",
    BEST_PER_BUDGET: "best fixed per budget",
    ORACLE_OF_ONE: "oracle of one",
    ORACLE: "unbiased oracle",
}
# Colour and dashes: who cannot tell the colours apart has the dashes.
_LINES: dict[str, tuple[str, Any]] = {
    BEST_FIXED: (PALETTE[1], (0, (6, 2))),
    BEST_PER_BUDGET: (PALETTE[2], (0, (6, 2, 1, 2))),
    ORACLE_OF_ONE: (PALETTE[3], (0, (6, 2, 1, 2, 1, 2))),
    ORACLE: (PALETTE[3], (0, (1.5, 1.5))),
    "none": (UNMIXED, "solid"),
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How often a team chose each entry, in groups of decisions.

    Attributes:
        entries: the catalogue's entries, and whatever was chosen besides.
        groups: what the groups are called.
        counts: how many trainings each group holds.
        shares: float64 [groups, entries]; rows sum to 1.
    """

    entries: tuple[str, ...]
    groups: tuple[str, ...]
    counts: tuple[int, ...]
    shares: Floats


def baselines(result: LevelResult) -> dict[str, str]:
    """Return the main baselines' names on a level, and what to call them."""
    return {uniform_entry(result.catalogue): "uniform random", **WORDS}


def usage_by_progress(result: LevelResult, team: str) -> Usage:
    """Return the shares of the entries at each decision, from the first to the last of a training.

    Raises:
        UnknownNameError: no such team was evaluated.
    """
    runs, entries = _runs(result, team), _entries(result, team)
    horizon = len(runs[0].actions)
    return Usage(
        entries=entries,
        groups=tuple(str(place + 1) for place in range(horizon)),
        counts=(len(runs),) * horizon,
        shares=np.stack([_shares(entries, [run.actions[place] for run in runs]) for place in range(horizon)]),
    )


def usage_by_epochs(result: LevelResult, team: str) -> Usage:
    """Return the shares of the entries in each third of the trainings, by their epochs; short trainings first.

    Raises:
        UnknownNameError: no such team was evaluated.
    """
    runs = _runs(result, team)
    values = [run.epochs for run in runs]
    bounds = np.unique(np.quantile(values, [1 / 3, 2 / 3])).tolist()
    return _binned(_entries(result, team), runs, values, bounds, [f"{bound:.2g}" for bound in bounds])


def usage_by_noise(result: LevelResult, team: str) -> Usage:
    """Return the shares of the entries in ranges of label noise: none, and steps of ten per cent.

    Raises:
        UnknownNameError: no such team was evaluated.
    """
    noises, runs = {instance.id: instance.noise for instance in result.instances}, _runs(result, team)
    values = [noises[run.instance] for run in runs]
    return _binned(_entries(result, team), runs, values, _NOISES, [f"{_POINTS * bound:.0f}" for bound in _NOISES])


def gains(result: LevelResult, members: Sequence[str], to: str) -> Floats:
    """Return differences in accuracy on equal steps, means over the replicates, float64 [instances, members].

    Args:
        result: a level.
        members: names of agents.
        to: name of the agent to compare with, run by paired run.

    Raises:
        UnknownNameError: an agent was not evaluated.
    """
    report = result.reports["steps"]
    paired: Floats = measured(report, members, "accuracy") - measured(report, [to], "accuracy")
    found: Floats = paired.mean(axis=2)
    return found


def compared(result: LevelResult, team: str, condition: str = "steps") -> dict[str, Comparison]:
    """Return how a team compares with each of the main baselines, by the baseline's name.

    Raises:
        UnknownNameError: no such team was evaluated.
    """
    result.team(team)
    found = {row.to: row for row in result.comparisons(condition) if row.agent == team}
    return {name: found[name] for name in baselines(result)}


def learning_figure(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Return how far policies were ahead of uniform random mixing while they learned.

    The mean is drawn where all curves are known, between evaluations on straight lines.

    Args:
        curves: by name, decisions and the difference in accuracy, decisions ascending; at least one.

    Raises:
        InputError: no curve, or one without a point.
    """
    if not curves or not all(curves.values()):
        raise InputError(f"`curves` must be one or more, each with a point, got {list(curves)}.")
    figure, (axes,) = _panels(1, 1, 3.6)
    for curve in curves.values():
        x, y = zip(*curve, strict=True)
        axes.plot(x, _POINTS * np.array(y), color=PALETTE[4], linewidth=1.1, marker="o", markersize=3, label=_SEEDS)
    first, last = max(curve[0][0] for curve in curves.values()), min(curve[-1][0] for curve in curves.values())
    steps = sorted({step for curve in curves.values() for step, _ in curve if first <= step <= last})
    if len(curves) > 1 and steps:
        drawn = [np.interp(steps, *np.array(curve, dtype=np.float64).T) for curve in curves.values()]
        axes.plot(
            steps,
            _POINTS * np.mean(drawn, axis=0),
            color=PALETTE[0],
            linewidth=2.8,
            marker="o",
            markersize=5,
            label="mean",
        )
    axes.axhline(0.0, color=INK, linewidth=1.0, zorder=1)
    axes.set(xlabel="decisions", ylabel="gain over uniform random, points")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    _legend(figure, [axes])
    return figure


def choice_figure(result: LevelResult, team: str) -> Figure:
    """Return which entries a team chose on a level: by progress, by epochs and by label noise.

    Raises:
        UnknownNameError: no such team was evaluated.
    """
    figure, (progress, epochs, noise) = _panels(1, 3, 3.9, width_ratios=(1.9, 1, 1.35), sharey=True)
    _draw_areas(progress, usage_by_progress(result, team))
    _draw_bars(epochs, usage_by_epochs(result, team), "epochs")
    _draw_bars(noise, usage_by_noise(result, team), "wrong labels, %")
    progress.set(ylabel="share of decisions", ylim=(0.0, 1.0))
    progress.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _legend(figure, [progress, epochs, noise], columns=4)
    return figure


def profile_figure(results: Sequence[LevelResult], team: str) -> Figure:
    """Return the share of instances on which an agent gains more than a threshold over uniform random mixing.

    An instance counts with its mean over the replicates, of a team once for each member: so the noise in what is
    counted is the same for a team and for a baseline. One panel a level.

    Raises:
        UnknownNameError: no such team was evaluated.
    """
    columns = min(2, len(results))
    rows = math.ceil(len(results) / columns)
    figure, panels = _panels(rows, columns, 0.5 + 2.5 * rows, sharey=True)
    for axes in panels[len(results) :]:
        axes.set_visible(False)
    for axes, result in zip(panels, results, strict=False):
        uniform, members = uniform_entry(result.catalogue), list(result.team(team).members)
        values = {team: gains(result, members, uniform)}
        values |= {name: gains(result, [name], uniform) for name in _LINES if name in result.reports["steps"].agents}
        joined = np.concatenate([own.ravel() for own in values.values()])
        low, high = np.quantile(joined, [0.01, 0.99]).tolist()
        thresholds = np.linspace(low, high, _THRESHOLDS)
        for name, own in reversed(values.items()):
            colour, dashes = _LINES.get(name, (PALETTE[0], "solid"))
            axes.plot(
                _POINTS * thresholds, performance_profile(own, thresholds), label=WORDS.get(name, name),
                color=colour, linestyle=dashes, linewidth=2.6 if name == team else 1.9,
            )  # fmt: skip
        axes.axvline(0.0, color=INK, linewidth=1.0, zorder=1)
        axes.set_title(_heading(result), loc="left", fontsize=10.5, color=INK)
        axes.set_ylim(0.0, 1.0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(color=GRID, linewidth=0.8)
    for axes in panels[len(results) - columns : len(results)]:
        axes.set_xlabel("gain over uniform random, points")
    for axes in panels[::columns]:
        axes.set_ylabel("share of instances")
    _legend(figure, panels[: len(results)], columns=5, turned=True)
    return figure


def forest_figure(results: Sequence[LevelResult], team: str) -> Figure:
    """Return a team's mean paired difference in accuracy to each main baseline, with its 95 % interval, by level.

    Small marks are the team's members. One panel a level.

    Raises:
        UnknownNameError: no such team was evaluated.
    """
    figure, panels = _panels(len(results), 1, 0.9 + 1.75 * len(results), sharex=True)
    for axes, result in zip(panels, results, strict=True):
        members, words = list(result.team(team).members), baselines(result)
        for place, (name, row) in enumerate(compared(result, team).items()):
            low, middle, high = (_POINTS * value for value in (row.mean.low, row.mean.estimate, row.mean.high))
            colour = PALETTE[2] if low > 0 else PALETTE[5] if high < 0 else NOTE
            axes.plot([low, high], [place, place], color=colour, linewidth=2.6, solid_capstyle="round")
            axes.plot([middle], [place], marker="o", markersize=8, color=colour)
            if len(members) > 1:
                marks = _POINTS * gains(result, members, name).mean(axis=0)
                axes.plot(
                    marks, [place + 0.3] * len(marks), linestyle="", marker="^", markersize=4.5, color=INK,
                    markerfacecolor="none", label=_SEEDS,
                )  # fmt: skip
            axes.annotate(
                f"{middle:+.2f} [{low:+.2f}, {high:+.2f}]",
                (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=9.5, color=INK,
            )  # fmt: skip
        axes.axvline(0.0, color=INK, linewidth=1.0, zorder=1)
        axes.set_ylim(len(words) - 0.4, -0.5)
        axes.set_yticks(range(len(words)), list(words.values()))
        axes.set_title(_heading(result), loc="left", fontsize=10.5, color=INK)
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    panels[-1].set_xlabel(f"accuracy of {team} minus baseline, points (mean, 95 % interval)")
    _legend(figure, panels)
    return figure


def study_figures(results: Sequence[LevelResult], team: str) -> dict[str, Figure]:
    """Return the figures of a study by name: the choices on each level, the profiles, and the differences.

    Raises:
        UnknownNameError: no such team was evaluated.
    """
    return {
        **{f"choices-{place}": choice_figure(result, team) for place, result in enumerate(results)},
        "profiles": profile_figure(results, team),
        "differences": forest_figure(results, team),
    }


def write_figures(folder: str | os.PathLike[str], figures: Mapping[str, Figure]) -> list[Path]:
    """Write figures into a folder, which is made if need be, as PNG; return their paths.

    Raises:
        OutputError: the folder cannot be written.
    """
    paths = [Path(folder) / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        write_bytes(path, png(figure))
    return paths


def _runs(result: LevelResult, team: str) -> list[Run]:
    report = result.reports["steps"]
    return [run for member in result.team(team).members for run in report.of(member)]


def _entries(result: LevelResult, team: str) -> tuple[str, ...]:
    """Return the catalogue's entries, and what was chosen besides: a method whose parameters the policy sets."""
    chosen = {_entry(action) for run in _runs(result, team) for action in run.actions}
    return (*result.catalogue.names, *sorted(chosen - set(result.catalogue.names)))


def _entry(action: str) -> str:
    """Return the name of the entry, or of the method, that a recorded action chose."""
    return action.partition("(")[0]


def _shares(entries: Sequence[str], actions: Sequence[str]) -> Floats:
    chosen = [_entry(action) for action in actions]
    return np.array([chosen.count(entry) for entry in entries], dtype=np.float64) / len(chosen)


def _binned(
    entries: tuple[str, ...],
    runs: Sequence[Run],
    values: Sequence[float],
    bounds: Sequence[float],
    words: Sequence[str],
) -> Usage:
    """Return the shares in ranges of values: up to the first bound, from each to the next, and above the last."""
    places: npt.NDArray[np.int64] = np.searchsorted(bounds, values, side="left")
    groups, counts, shares = [], [], []
    for place in np.unique(places).tolist():
        inside = [run for run, own in zip(runs, places, strict=True) if own == place]
        groups.append(_range_words(words, place))
        counts.append(len(inside))
        shares.append(_shares(entries, [action for run in inside for action in run.actions]))
    return Usage(entries=entries, groups=tuple(groups), counts=tuple(counts), shares=np.stack(shares))


def _range_words(words: Sequence[str], place: int) -> str:
    if place == len(words):
        return f"> {words[-1]}"
    if place == 0:
        return words[0] if words[0] == "0" else f"≤ {words[0]}"
    return f"{words[place - 1]}-{words[place]}"


def _panels(rows: int, columns: int, height: float, **settings: Any) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    ratios = {name: settings.pop(name) for name in ("width_ratios",) if name in settings}
    panels = figure.subplots(rows, columns, squeeze=False, gridspec_kw=ratios, **settings)
    for axes in panels.flat:
        tidy(axes)
    return figure, list(panels.flat)


def _legend(figure: Figure, panels: Sequence[Axes], *, columns: int = 4, turned: bool = False) -> None:
    """Name below the panels whatever stands in any of them, once."""
    handles: dict[str, Any] = {}
    for axes in panels:
        own, labels = axes.get_legend_handles_labels()
        handles = dict(zip(labels, own, strict=True)) | handles
    if handles:
        named = list(handles.items())[:: -1 if turned else 1]
        figure.legend(
            [handle for _, handle in named], [name for name, _ in named],
            loc="outside lower center", ncols=columns, frameon=False, fontsize=10, handlelength=1.8,
            labelcolor=INK,
        )  # fmt: skip


def _shown(usage: Usage) -> Iterator[tuple[str, str, Floats]]:
    """Yield name, colour and shares of the entries that were used, each entry's colour the same in all figures."""
    for place, (entry, colour) in enumerate(zip(usage.entries, colours(usage.entries), strict=True)):
        if usage.shares[:, place].max() >= SMALLEST_SHARE:
            yield entry, colour, usage.shares[:, place]


def _draw_areas(axes: Axes, usage: Usage) -> None:
    """Stack the shares of all decisions, and name areas that have room."""
    horizon = len(usage.groups)
    edges, floor = np.arange(horizon + 1) + 0.5, np.zeros(horizon)
    for entry, colour, shares in _shown(usage):
        axes.fill_between(
            edges, np.append(floor, floor[-1]), np.append(floor + shares, floor[-1] + shares[-1]),
            step="post", color=colour, edgecolor="white", linewidth=0.6, label=entry,
        )  # fmt: skip
        # Where the area and those beside it are high, a name has room.
        wide = np.convolve(shares, np.ones(3) / 3, mode="same") if horizon > 2 else shares
        best = int(wide.argmax())
        if wide[best] >= _NAMED and shares[best] >= _NAMED:
            place = float(np.clip(best + 1, 1 + 0.12 * horizon, horizon - 0.12 * horizon))
            axes.text(
                place, floor[best] + shares[best] / 2, entry, ha="center", va="center", fontsize=9.5,
                color="white" if _luminance(colour) < _DARK else INK,
            )  # fmt: skip
        floor = floor + shares
    axes.set(xlabel="decision", xlim=(0.5, horizon + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))


def _draw_bars(axes: Axes, usage: Usage, label: str) -> None:
    floor = np.zeros(len(usage.groups))
    places = range(len(usage.groups))
    for entry, colour, shares in _shown(usage):
        axes.bar(places, shares, bottom=floor, color=colour, edgecolor="white", linewidth=0.6, width=0.86, label=entry)
        floor = floor + shares
    words = [f"{group}\nn={count}" for group, count in zip(usage.groups, usage.counts, strict=True)]
    axes.set_xticks(places, words, fontsize=8.5)
    axes.set_xlabel(label)


def _luminance(colour: str) -> float:
    """Return how bright a colour looks, in [0, 1]."""
    red, green, blue = to_rgb(colour)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _heading(result: LevelResult) -> str:
    return f"{result.name} ({len(result.instances)} instances)"
