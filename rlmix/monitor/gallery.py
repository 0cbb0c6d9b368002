"""One picture of every mix method, on real photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from rlmix._apply import apply
from rlmix.errors import DataError, InputError
from rlmix.methods.method import AbstractMethod
from rlmix.methods.registry import get, names
from rlmix.methods.uniform import Uniform
from rlmix.monitor.figures import INK, NOTE, soft_label
from rlmix.ops import rng
from rlmix.plan import MixPlan
from rlmix.saliency._eight_bit import to_uint8
from rlmix.saliency._fine_grained import fine_grained
from rlmix.types import MixInputs

SIDE = 224
SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
# Squares of scikit-learn's two photographs: name, file, left, top, side.
CROPS = (
    ("pagoda", "china.jpg", 50, 15, 310),
    ("dahlia", "flower.jpg", 145, 62, 318),
    ("cypress", "china.jpg", 420, 120, 220),
    ("petals", "flower.jpg", 216, 132, 180),
    ("eaves", "china.jpg", 64, 120, 190),
)
SALIENCY = "rlmix.saliency.fine_grained (Montabone and Soto 2010, in the form of OpenCV)"
TITLE = "Each photograph mixed with the one to its right, the last with the first"
LEGEND = (
    "Above on the right of each mix: where its pixels come from. The colour says from which photograph (first row), "
    "light to dark from which place,\nfrom its top left to its bottom right; blended pixels blend their colours. Below "
    "it, for methods that look at saliency: the map of the photograph itself."
)
# Colours of the photographs that stand side by side; the last and the first do, too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00")
# Inches: a large image, a small one, between the two, a column, a row, and what is around them.
LARGE, SMALL, GAP, COLUMN, ROW = 1.62, 0.78, 0.06, 2.62, 2.14
MARGIN, NAMES, HEAD, FOOT = 0.2, 1.55, 1.1, 0.3


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Photos:
    """Photographs to mix.

    Args:
        images: float32 [n, 3, SIDE, SIDE] in [0, 1].
        labels: int64 [n] in [0, len(classes)).
        classes: the names of the classes.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]


def bundled_photos() -> Photos:
    """Return five different squares of the two photographs that come with scikit-learn."""
    from sklearn.datasets import load_sample_image

    files = {file: Image.fromarray(load_sample_image(file)) for _, file, *_ in CROPS}
    squares = [files[file].crop((left, top, left + side, top + side)) for _, file, left, top, side in CROPS]
    return Photos(
        images=torch.stack([_tensor(square) for square in squares]),
        labels=torch.arange(len(CROPS)),
        classes=tuple(name for name, *_ in CROPS),
    )


def folder_photos(folder: str | Path, *, most: int = 5) -> Photos:
    """Return some photographs of a folder, taken evenly from all that it holds, its sub-folders' too.

    A photograph's class is the folder it lies in, or its own name if it lies in `folder` itself.

    Raises:
        DataError: there are fewer than two images, or one cannot be read.
    """
    root = Path(folder)
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(files) < 2:
        raise DataError(
            f"`{root}` holds {len(files)} images ({', '.join(sorted(SUFFIXES))}), at least 2 are needed to mix."
        )
    count = min(most, len(files))
    chosen = [files[place * len(files) // count] for place in range(count)]
    kinds = [path.stem if path.parent == root else path.parent.name for path in chosen]
    classes = tuple(dict.fromkeys(kinds))
    return Photos(
        images=torch.stack([_opened(path) for path in chosen]),
        labels=torch.tensor([classes.index(kind) for kind in kinds]),
        classes=classes,
    )


def gallery_methods(chosen: Sequence[str] = ()) -> list[AbstractMethod]:
    """Return the methods to show, all registered ones unless some are chosen; a mixture chooses anew for each image.

    Raises:
        UnknownNameError: no method of such a name; the message has the nearest known one.
    """
    # Each photograph gets numbers of its own.
    return [get(name, scope="image") for name in chosen or names()]


def gallery_figure(photos: Photos, methods: Sequence[AbstractMethod], *, seed: int = 0) -> Figure:
    """Return a row of mixed photographs for each method; every photograph is mixed with the one to its right.

    Beside each mix stands where its pixels come from, and the saliency map for the methods that look at one.

    Args:
        photos: at least two.
        methods: at least one.
        seed: whole number in [0, 2**63); each method draws with a key of its own under it.

    Raises:
        InputError: no method or fewer than two photographs.
    """
    count = photos.images.shape[0]
    if count < 2 or not methods:
        raise InputError(f"a gallery needs two photographs and one method, got {count} and {len(methods)}.")
    figure, axes = _empty_sheet(count, 1 + len(methods))
    marks = _marks(count, photos.images.shape[2], photos.images.shape[3])
    sheet = _Sheet(photos=photos, maps=fine_grained(to_uint8(photos.images)), marks=marks, axes=axes)
    _draw_originals(sheet, salient=any(method.needs_saliency for method in methods))
    for row, method in enumerate(methods, start=1):
        _draw_method(sheet, row, method, seed)
    return figure


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sheet:
    """What is drawn, and where: one pair of axes whose unit is the inch, y from the top down.

    Args:
        photos: the originals.
        maps: their saliency, [n, H, W].
        marks: for each photograph a picture of its places in its colour, [n, 3, H, W].
        axes: what is drawn on.
    """

    photos: Photos
    maps: Tensor
    marks: Tensor
    axes: Axes

    def name(self, row: int, name: str, notes: Sequence[str]) -> None:
        """Write what a row shows."""
        top = HEAD + row * ROW
        self.axes.text(MARGIN, top + 0.02, name, fontsize=13, fontweight="bold", color=INK, va="top")
        text = "\n".join(notes)
        self.axes.text(MARGIN, top + 0.3, text, fontsize=8.5, color=NOTE, va="top", linespacing=1.3)

    def large(self, row: int, column: int, image: Tensor, caption: str) -> None:
        """Show an image [3, H, W] with a caption."""
        left, top = _corner(row, column)
        self._show(_pixels(image), left, top, LARGE)
        self.axes.text(left, top + LARGE + 0.05, caption, fontsize=9, color=INK, va="top", linespacing=1.3)

    def mark(self, row: int, column: int, image: Tensor) -> None:
        """Show a picture [3, H, W] of where pixels come from, above on the right of an image."""
        left, top = _corner(row, column)
        self._show(_pixels(image), left + LARGE + GAP, top, SMALL)

    def map(self, row: int, column: int) -> None:
        """Show the saliency of a photograph, below on the right of an image."""
        left, top = _corner(row, column)
        self._show(self.maps[column].numpy(), left + LARGE + GAP, top + LARGE - SMALL, SMALL)

    def _show(self, pixels: npt.NDArray[np.float32], left: float, top: float, side: float) -> None:
        few = max(pixels.shape[:2]) <= 64
        self.axes.imshow(
            pixels, cmap="magma", extent=(left, left + side, top + side, top), aspect="auto",
            interpolation="nearest" if few else "antialiased",
        )  # fmt: skip


def _corner(row: int, column: int) -> tuple[float, float]:
    return MARGIN + NAMES + column * COLUMN, HEAD + row * ROW


def _empty_sheet(columns: int, rows: int) -> tuple[Figure, Axes]:
    width, height = MARGIN + NAMES + columns * COLUMN, HEAD + rows * ROW + FOOT
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_autoscale_on(False)
    axes.axis("off")
    axes.set(xlim=(0.0, width), ylim=(height, 0.0))
    axes.text(MARGIN, 0.18, TITLE, fontsize=13, fontweight="bold", color=INK, va="top")
    axes.text(MARGIN, 0.5, LEGEND, fontsize=9.5, color=NOTE, va="top", linespacing=1.4)
    axes.text(MARGIN, height - 0.12, f"Saliency maps: {SALIENCY}.", fontsize=8.5, color=NOTE, va="bottom")
    return figure, axes


def _marks(count: int, height: int, width: int) -> Tensor:
    """Return each photograph's colour, light at its top left and dark at its bottom right: [n, 3, H, W]."""
    colours = torch.tensor([to_rgb(COLOURS[number % len(COLOURS)]) for number in range(count)]).view(count, 3, 1, 1)
    down, across = torch.linspace(0, 1, height).unsqueeze(1), torch.linspace(0, 1, width)
    depth = (down + across) / 2
    return torch.where(
        depth < 0.5, torch.lerp(torch.ones(()), colours, 0.4 + 1.2 * depth), colours * (1.45 - 0.9 * depth)
    )


def _draw_originals(sheet: _Sheet, *, salient: bool) -> None:
    photos = sheet.photos
    sheet.name(0, "originals", ["their colours", *["and saliency"] * salient])
    for column, (image, label) in enumerate(zip(photos.images, photos.labels.tolist(), strict=True)):
        sheet.large(0, column, image, photos.classes[label])
        sheet.mark(0, column, sheet.marks[column])
        if salient:
            sheet.map(0, column)


def _draw_method(sheet: _Sheet, row: int, method: AbstractMethod, seed: int) -> None:
    photos = sheet.photos
    count, _, height, width = photos.images.shape
    inputs = MixInputs(
        count, height, width,
        saliency=sheet.maps, images=photos.images, labels=photos.labels, partners=torch.arange(count).roll(-1),
    )  # fmt: skip
    plan = method.plan(inputs, rng.Streams([rng.derive(seed, rng.words(method.name))]))
    sheet.name(row, method.name, _notes(method, plan))
    mixed, marks = apply(photos.images, plan), apply(sheet.marks, plan)
    targets = plan.soft_targets(photos.labels, len(photos.classes))
    for column, (target, lam) in enumerate(zip(targets, plan.lam.tolist(), strict=True)):
        label = soft_label(target, photos.classes, joint=", ")
        sheet.large(row, column, mixed[column], f"λ = {lam:.2f}\n{label}")
        sheet.mark(row, column, marks[column])
        if method.needs_saliency:
            sheet.map(row, column)


def _notes(method: AbstractMethod, plan: MixPlan) -> list[str]:
    """Return what a reader of the row should know."""
    if isinstance(method, Uniform):
        return ["chooses anew", "for each image"]
    return [
        *["saliency-guided"] * method.needs_saliency,
        *["moves cells"] * _moved(plan),
        *["each output mixes", "images of the", "whole set"] * (plan.partners.dim() == 4),
    ]


def _moved(plan: MixPlan) -> bool:
    """Say whether a cell is shown at another place than its own."""
    return plan.moves is not None and bool((plan.moves.flatten(2) != torch.arange(plan.moves[0, 0].numel())).any())


def _pixels(image: Tensor) -> npt.NDArray[np.float32]:
    """Return an image [3, H, W] as matplotlib takes it."""
    return np.asarray(image.detach().float().clamp(0, 1).permute(1, 2, 0).numpy(), dtype=np.float32)


def _opened(path: Path) -> Tensor:
    try:
        with Image.open(path) as opened:
            return _tensor(opened)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"`{path}` cannot be read as an image ({error}). Mend or remove it.") from error


def _tensor(image: Image.Image) -> Tensor:
    fitted = ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted, dtype=np.float32) / 255.0).permute(2, 0, 1).contiguous()
