"""Figures of trainings and policies. They are drawn without pyplot, so no state is shared and no window can open."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from rlmix.errors import InputError

# Okabe and Ito's colours, which people with any kind of colour vision tell apart; then tab20's lighter ones.
PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#C7B42C",
    "#7F6BB0", "#8C564B", "#98DF8A", "#FF9896", "#C5B0D5", "#C49C94", "#9EDAE5",
)  # fmt: skip
REFERENCE_COLOURS = ("#646B75", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
UNMIXED = "#9AA0A6"
INK = "#2B2F36"
NOTE = "#646B75"
GRID = "#DADDE2"
# Shares below this are not worth a word in a caption.
SMALLEST_SHARE = 0.005


def colours(methods: Sequence[str]) -> list[str]:
    """Return one colour for each method, in their order; not mixing is grey."""
    mixing = [method for method in methods if method != "none"]
    return [UNMIXED if method == "none" else PALETTE[mixing.index(method) % len(PALETTE)] for method in methods]


def tidy(axes: Axes) -> None:
    """Give axes the look that all figures have."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.set_axisbelow(True)


def png(figure: Figure, *, dpi: int = 150) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def learning_curve_figure(
    x: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    *,
    x_label: str,
    y_label: str,
    references: Mapping[str, float] | None = None,
) -> Figure:
    """Return curves over one axis, each named at its own end.

    Args:
        x: positions, at least one.
        curves: values by name, as many as positions each; NaN leaves a gap.
        x_label: what the positions are.
        y_label: what the values are.
        references: levels by name, drawn as dashed lines.

    Raises:
        InputError: a curve of another length than `x`.
    """
    figure, axes = _empty(7.2, 3.6)
    for (name, values), colour in zip(curves.items(), PALETTE, strict=False):
        _check_length(name, values, len(x))
        axes.plot(x, values, color=colour, linewidth=2, marker="o" if len(x) < 25 else "", markersize=4, label=name)
    for (name, level), colour in zip((references or {}).items(), REFERENCE_COLOURS, strict=False):
        axes.axhline(level, color=colour, linewidth=1.3, linestyle=(0, (5, 3)), label=name)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    if len(curves) + len(references or {}) > 1:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
    return figure


def probability_figure(progress: Sequence[float], probabilities: Mapping[str, Sequence[float]]) -> Figure:
    """Return the probabilities of the methods over a training, stacked to 1.

    Args:
        progress: where in the training each decision is taken, increasing, in [0, 1]; each holds until the next.
        probabilities: one value in [0, 1] for each decision, by method.

    Raises:
        InputError: as many values as decisions are needed.
    """
    figure, axes = _empty(7.2, 3.6)
    for name, values in probabilities.items():
        _check_length(name, values, len(progress))
    edges = [*progress, 1.0]
    stacked = [[*values, values[-1]] for values in probabilities.values()]
    names = list(probabilities)
    axes.stackplot(
        edges, stacked, labels=names, colors=colours(names), step="post", edgecolor="white", linewidth=0.6
    )  # fmt: skip
    axes.set(xlabel="progress of the training", ylabel="probability", xlim=(edges[0], 1.0), ylim=(0.0, 1.0))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    # Listed from the top down, as they are stacked.
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def difference_figure(rows: Sequence[tuple[str, float, float, float]], *, x_label: str) -> Figure:
    """Return differences with their intervals, one below the other, beside a line at no difference.

    Args:
        rows: (name, estimate, low, high).
        x_label: what the numbers are.
    """
    figure, axes = _empty(7.2, 1.1 + 0.42 * max(1, len(rows)))
    for place, (_, estimate, low, high) in enumerate(rows):
        colour = PALETTE[2] if low > 0 else PALETTE[5] if high < 0 else UNMIXED
        axes.plot([low, high], [place, place], color=colour, linewidth=2.4, solid_capstyle="round")
        axes.plot([estimate], [place], marker="o", markersize=7, color=colour)
        axes.annotate(
            f"{estimate:+.2f} [{low:+.2f}, {high:+.2f}]",
            (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=INK,
        )  # fmt: skip
    axes.axvline(0.0, color=INK, linewidth=1.0, zorder=0)
    axes.set(xlabel=x_label, ylim=(len(rows) - 0.4, -0.6))
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def mixed_figure(
    images: Tensor,
    targets: Tensor,
    classes: Sequence[str],
    *,
    titles: Sequence[str] | None = None,
    columns: int = 6,
) -> Figure:
    """Return a grid of mixed images with their soft labels written beneath.

    Args:
        images: float [n, C, H, W] in [0, 1], C 1 or 3, on the CPU.
        targets: float [n, len(classes)], rows sum to 1.
        classes: the names of the classes.
        titles: a word above each image, such as the method.
        columns: images in a row.

    Raises:
        InputError: not as many targets or titles as images.
    """
    count = images.shape[0]
    _check_length("targets", targets, count)
    _check_length("titles", titles if titles is not None else [""] * count, count)
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(1.55 * columns, (2.35 if titles is not None else 2.1) * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for place, axes in enumerate(grid.flat):
        axes.axis("off")
        if place >= count:
            continue
        draw_image(axes, images[place])
        axes.text(
            0.5, -0.05, soft_label(targets[place], classes),
            transform=axes.transAxes, ha="center", va="top", fontsize=10, color=INK, linespacing=1.25,
        )  # fmt: skip
        if titles is not None:
            axes.set_title(titles[place], fontsize=10.5, color=INK, pad=4)
    return figure


def draw_image(axes: Axes, image: Tensor) -> None:
    """Show one image, float [C, H, W] in [0, 1], without an axis; pixels stay squares where there are few."""
    pixels = image.detach().float().clamp(0, 1).permute(1, 2, 0).numpy()
    few = max(image.shape[1:]) <= 64
    grey = pixels.shape[2] == 1
    axes.imshow(
        pixels[..., 0] if grey else pixels,
        cmap="gray" if grey else None, vmin=0.0, vmax=1.0, interpolation="nearest" if few else "antialiased",
    )  # fmt: skip
    axes.axis("off")


def soft_label(target: Tensor, classes: Sequence[str], *, most: int = 2, joint: str = "\n") -> str:
    """Return the largest shares of a label distribution in words, one a line; what is left out is said.

    Args:
        target: float [len(classes)], sums to 1.
        classes: the names of the classes.
        most: how many classes are named.
        joint: what stands between two of them.
    """
    shares = sorted(zip(target.tolist(), classes, strict=True), key=lambda pair: -pair[0])
    shown = [(share, name) for share, name in shares if share >= SMALLEST_SHARE]
    lines = [f"{_short(name)} {share:.0%}" for share, name in shown[:most]]
    rest = sum(share for share, _ in shown[most:])
    return joint.join([*lines, f"others {rest:.0%}"] if rest >= SMALLEST_SHARE else lines)


def _short(name: str, most: int = 14) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _empty(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    tidy(axes)
    return figure, axes


def _check_length(name: str, values: Sequence[object] | Tensor, count: int) -> None:
    if len(values) != count:
        raise InputError(f"`{name}` must hold {count} values, got {len(values)}.")
