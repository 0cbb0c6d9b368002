"""One picture of every mix method, on real photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import cv2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from rlmix._apply import apply
from rlmix.errors import DataError, InputError
from rlmix.methods.method import AbstractMethod
from rlmix.methods.registry import get, names, parameters
from rlmix.monitor.figures import INK, NOTE, draw_image, soft_label
from rlmix.ops import rng
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
SALIENCY = "fine-grained static saliency (Montabone and Soto 2010, OpenCV)"


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


def fine_grained_maps(images: Tensor) -> Tensor:
    """Return how salient each pixel is: float32 [n, 3, H, W] in [0, 1] -> float32 [n, H, W] in [0, 1].

    Source: Montabone and Soto 2010, https://doi.org/10.1016/j.imavis.2009.06.006, as in OpenCV.
    """
    detector = cv2.saliency.StaticSaliencyFineGrained.create()
    maps = []
    for image in images:
        pixels = (image.permute(1, 2, 0).clamp(0, 1) * 255.0).round().to(torch.uint8).numpy()
        found, saliency = detector.computeSaliency(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
        maps.append(np.asarray(saliency, dtype=np.float32) if found else np.zeros(pixels.shape[:2], np.float32))
    return torch.from_numpy(np.stack(maps))


def gallery_methods(chosen: Sequence[str] = ()) -> list[AbstractMethod]:
    """Return the methods to show, all registered ones unless some are chosen; a mixture chooses anew for each image.

    Raises:
        UnknownNameError: no method of such a name; the message has the nearest known one.
    """
    methods = []
    for name in chosen or names():
        params: dict[str, Any] = {"scope": "image"} if "scope" in parameters(name) else {}
        methods.append(get(name, **params))
    return methods


def gallery_figure(photos: Photos, methods: Sequence[AbstractMethod], *, seed: int = 0) -> Figure:
    """Return a row of mixed photographs for each method; every photograph is mixed with the one to its right.

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
    maps = fine_grained_maps(photos.images)
    salient = any(method.needs_saliency for method in methods)
    rows = 1 + salient + len(methods)
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.06, hspace=0.0, wspace=0.0)
    figure = Figure(figsize=(1.35 + 1.95 * count, 0.8 + 2.36 * rows), layout=layout)
    figure.suptitle(
        "Each photograph mixed with the one to its right, the last with the first",
        fontsize=13, color=INK, x=0.01, ha="left",
    )  # fmt: skip
    grid = figure.subplots(rows, count + 1, squeeze=False, gridspec_kw={"width_ratios": [0.62, *[1.0] * count]})
    for axes in grid.flat:
        axes.axis("off")
    _name(grid[0, 0], "originals", "")
    for axes, image, label in zip(grid[0, 1:], photos.images, photos.labels.tolist(), strict=True):
        draw_image(axes, image)
        _caption(axes, photos.classes[label])
    if salient:
        _name(grid[1, 0], "saliency", "for the methods\nthat need it")
        for axes, saliency in zip(grid[1, 1:], maps, strict=True):
            axes.imshow(saliency.numpy(), cmap="magma", interpolation="antialiased")
        figure.supxlabel(f"\nSaliency maps: {SALIENCY}.", fontsize=8.5, color=NOTE, x=0.99, ha="right")
    for line, method in zip(grid[1 + salient :], methods, strict=True):
        _draw_method(line, method, photos, maps, seed)
    return figure


def _draw_method(line: Any, method: AbstractMethod, photos: Photos, maps: Tensor, seed: int) -> None:
    count, _, height, width = photos.images.shape
    partners = torch.arange(count).roll(-1)
    inputs = MixInputs(
        count, height, width, saliency=maps, images=photos.images, labels=photos.labels, partners=partners
    )  # fmt: skip
    plan = method.plan(inputs, rng.Streams([rng.derive(seed, rng.words(method.name))]))
    mixed, targets = apply(photos.images, plan), plan.soft_targets(photos.labels, len(photos.classes))
    _name(line[0], method.name, "saliency-guided" if method.needs_saliency and method.name != "uniform" else "")
    for axes, image, target, lam in zip(line[1:], mixed, targets, plan.lam.tolist(), strict=True):
        draw_image(axes, image)
        _caption(axes, f"λ = {lam:.2f}\n{soft_label(target, photos.classes, joint=', ')}")


def _name(axes: Axes, name: str, note: str) -> None:
    axes.text(0.0, 0.5, name, transform=axes.transAxes, fontsize=13, fontweight="bold", color=INK, va="bottom")
    axes.text(0.0, 0.46, note, transform=axes.transAxes, fontsize=8.5, color=NOTE, va="top", linespacing=1.25)


def _caption(axes: Axes, text: str) -> None:
    axes.text(
        0.5, -0.04, text, transform=axes.transAxes, ha="center", va="top", fontsize=9, color=INK, linespacing=1.3
    )  # fmt: skip


def _opened(path: Path) -> Tensor:
    try:
        with Image.open(path) as opened:
            return _tensor(opened)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"`{path}` cannot be read as an image ({error}). Mend or remove it.") from error


def _tensor(image: Image.Image) -> Tensor:
    fitted = ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted, dtype=np.float32) / 255.0).permute(2, 0, 1).contiguous()
