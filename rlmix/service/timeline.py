"""What happened in a run, as shapes to draw: which entry held over which steps, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from rlmix.service.records import DecisionRecord, Ended, Feedback, Origin, Run

WIDTH = 760
"""Of a drawing; its height follows from what is in it."""
LEFT = 150
"""Where the plots begin; the names stand before."""
RIGHT = WIDTH - 30
"""Where they end."""

_LANE = 26
_PANEL = 92
_AXIS = 30
# So that names which stand side by side can be read.
_BETWEEN = 34
_SHOWN = 6


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """An entry that held for some steps.

    Attributes:
        x: left edge.
        y: upper edge.
        width: of the bar.
        origin: who decided it.
        text: the same in words.
    """

    x: float
    y: float
    width: float
    origin: Origin
    text: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A place with a name.

    Attributes:
        x: where.
        y: where.
        text: the name.
    """

    x: float
    y: float
    text: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Values of one name.

    Attributes:
        name: of the values.
        top: upper edge.
        low: the lowest, in words, at the lower edge.
        high: the highest, at the upper edge.
        base: lower edge.
        line: the points of a line through them, as SVG writes them.
        dots: each value.
    """

    name: str
    top: float
    low: str
    high: str
    base: float
    line: str
    dots: tuple[Mark, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """Shapes in a rectangle of WIDTH.

    Attributes:
        height: of the rectangle.
        lanes: names of the lanes.
        bars: in the lanes.
        panels: below them.
        ticks: at the lower edge.
    """

    height: float
    lanes: tuple[Mark, ...]
    bars: tuple[Bar, ...]
    panels: tuple[Panel, ...]
    ticks: tuple[Mark, ...]


def timeline(
    run: Run, decisions: Sequence[DecisionRecord], feedback: Sequence[Feedback], names: Sequence[str]
) -> Drawing:
    """Return a run's decisions that the classifier came from, and what came of them, over its steps.

    Args:
        run: the run.
        decisions: of it, ascending.
        feedback: of it, ascending.
        names: of the policy's entries.
    """
    lasting = Ended(cursor=0, run=run, decisions=tuple(decisions), feedback=tuple(feedback)).lasting
    ends = until(run, lasting)
    total = max([*ends, 1])
    used = sorted({record.entry for record in lasting})
    rows = {entry: _LANE * place for place, entry in enumerate(used)}

    def across(step: float) -> float:
        return LEFT + (RIGHT - LEFT) * step / total

    bars = [
        Bar(
            x=across(record.step),
            y=rows[record.entry] + 4,
            # One that held for a few steps of very many is seen too.
            width=max(across(end) - across(record.step), 1.5),
            origin=record.origin,
            text=f"Steps {record.step:,} to {end:,}: {names[record.entry]} ({record.origin})",
        )
        for record, end in zip(lasting, ends, strict=True)
    ]
    steps = {record.seq: record.step for record in lasting}
    values = _by_name([
        (across(steps[one.seq]), f"step {steps[one.seq]:,}", one.values) for one in feedback if one.seq in steps
    ])  # fmt: skip
    top = _LANE * len(used)
    panels = _panels(values, top)
    bottom = top + _PANEL * len(panels)
    ticks = [Mark(x=across(share * total), y=bottom + 18, text=f"{round(share * total):,}") for share in (0, 0.5, 1)]
    return Drawing(
        height=bottom + _AXIS,
        lanes=tuple(Mark(x=LEFT - 10, y=rows[entry] + 18, text=names[entry]) for entry in used),
        bars=tuple(bars),
        panels=panels,
        ticks=tuple(ticks),
    )


def until(run: Run, decisions: Sequence[DecisionRecord]) -> tuple[int, ...]:
    """Return up to which step each decision held.

    The last one of a run that goes on is drawn as long as the one before.
    """
    if not decisions:
        return ()
    steps = [record.step for record in decisions]
    total = run.spec.get("total_steps")
    end = total if isinstance(total, int) else steps[-1]
    if run.state == "active":
        end = min(end, 2 * steps[-1] - steps[-2] if len(steps) > 1 else steps[-1])
    return (*steps[1:], max(end, steps[-1]))


def over_runs(runs: Sequence[tuple[Run, Feedback | None]]) -> Drawing:
    """Return what was reported last of each run, in the order in which they began.

    Args:
        runs: of one policy, with the last feedback of each; the first that began first.
    """
    count = max(len(runs) - 1, 1)
    places = [LEFT + (RIGHT - LEFT) * number / count for number in range(len(runs))]
    panels = _panels(
        _by_name([
            (x, f"{run.name}, version {run.version.number}", one.values)
            for x, (run, one) in zip(places, runs, strict=True)
            if one is not None
        ]),
        0,
    )  # fmt: skip
    bottom = _PANEL * len(panels)
    ticks: list[Mark] = []
    version = None
    for x, (run, _) in zip(places, runs, strict=True):
        if run.version.number != version and (not ticks or x - ticks[-1].x >= _BETWEEN):
            ticks.append(Mark(x=x, y=bottom + 18, text=f"v{run.version.number}"))
        version = run.version.number
    return Drawing(height=bottom + _AXIS, lanes=(), bars=(), panels=panels, ticks=tuple(ticks))


Value = tuple[float, float, str]


def _by_name(given: Sequence[tuple[float, str, Mapping[str, float]]]) -> dict[str, list[Value]]:
    """Return (x, value, place in words) for each name; the names that occur most often, by name."""
    found: dict[str, list[Value]] = {}
    for x, place, values in given:
        for name, value in values.items():
            found.setdefault(name, []).append((x, value, place))
    most = sorted(found, key=lambda name: (-len(found[name]), name))[:_SHOWN]
    return {name: found[name] for name in sorted(most)}


def _panels(values: Mapping[str, Sequence[Value]], top: float) -> tuple[Panel, ...]:
    """Return a panel for each name, one below the other."""
    panels = []
    for place, (name, points) in enumerate(values.items()):
        upper, lower = top + _PANEL * place + 22, top + _PANEL * (place + 1) - 10
        low, high = min(value for _, value, _ in points), max(value for _, value, _ in points)
        # Of equal values, or of one, the line lies in the middle.
        span = high - low or 1.0
        middle = 0.5 if high == low else 0.0
        dots = tuple(
            Mark(
                x=round(x, 2),
                y=round(lower - (lower - upper) * ((value - low) / span + middle), 2),
                text=f"{name} {value:.4g}, {where}",
            )
            for x, value, where in points
        )
        panels.append(
            Panel(
                name=name,
                top=upper,
                low=f"{low:.4g}",
                high=f"{high:.4g}",
                base=lower,
                line=" ".join(f"{dot.x},{dot.y}" for dot in dots),
                dots=dots,
            )
        )
    return tuple(panels)
