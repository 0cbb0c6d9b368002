"""The gallery of methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rlmix.errors import DataError, InputError, UnknownNameError
from rlmix.methods.registry import get, names
from rlmix.monitor.gallery import (
    SIDE,
    Photos,
    bundled_photos,
    folder_photos,
    gallery_figure,
    gallery_methods,
)
from rlmix.saliency import fine_grained, to_uint8


def small(count: int = 3) -> Photos:
    """Return small pictures, since drawing large ones takes its time."""
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Photos(images=images, labels=torch.arange(count), classes=tuple("abcdef"[:count]))


def test_the_bundled_photographs_are_real_and_different() -> None:
    """A method mixed with itself shows nothing."""
    photos = bundled_photos()
    assert photos.images.shape == (5, 3, SIDE, SIDE)
    assert len(set(photos.classes)) == 5
    means = photos.images.mean((2, 3))
    assert torch.cdist(means, means).add(torch.eye(5)).min() > 0.02
    assert 0 <= photos.images.min() < 0.1 < 0.9 < photos.images.max() <= 1


def test_every_registered_method_has_its_row() -> None:
    """A new method must appear in the gallery without a line of its own; captions agree with lam."""
    photos = small()
    figure = gallery_figure(photos, gallery_methods())
    shown = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert set(names()) <= set(shown)
    captions = [text for text in shown if text.startswith("λ")]
    assert len(captions) == 3 * len(names())
    assert captions[:3] == ["λ = 1.00\na 100%", "λ = 1.00\nb 100%", "λ = 1.00\nc 100%"]


def panels(names: tuple[str, ...], photos: Photos) -> list[Any]:
    """Return all pictures of a gallery in the order in which they are drawn, as arrays."""
    figure = gallery_figure(photos, [get(name) for name in names])
    return [np.asarray(image.get_array()) for axes in figure.axes for image in axes.images]


def test_maps_stand_beside_the_mixes_of_methods_that_look_at_them() -> None:
    """Without them nobody can tell why a method chose its places; the others have none."""
    photos = small()
    maps = fine_grained(to_uint8(photos.images)).numpy()
    shown = panels(("cutmix", "rmix"), photos)
    # Each column has an image and a mark; the originals and R-Mix have a map, too.
    assert len(shown) == 3 * 3 + 3 * 2 + 3 * 3
    found = [panel for panel in shown if panel.ndim == 2]
    for column in range(3):
        np.testing.assert_array_equal(found[column], maps[column])
        np.testing.assert_array_equal(found[3 + column], maps[column])
    assert not [panel for panel in panels(("cutmix",), photos) if panel.ndim == 2]


def test_marks_show_where_the_pixels_of_a_mix_come_from() -> None:
    """They are mixed by the very plan; without mixing they are those of the originals, each of another colour."""
    photos = small()
    shown = panels(("none", "cutmix"), photos)
    pictures, marks = shown[0::2], shown[1::2]
    for column in range(3):
        np.testing.assert_array_equal(marks[3 + column], marks[column])
        own = (pictures[6 + column] == pictures[column]).all(2)
        np.testing.assert_array_equal((marks[6 + column] == marks[column]).all(2), own)
        partner = (column + 1) % 3
        np.testing.assert_array_equal(marks[6 + column][~own], marks[partner][~own])
    colours = np.stack([mark.mean((0, 1)) for mark in marks[:3]])
    assert np.abs(colours[:, None] - colours).max(2)[~np.eye(3, dtype=bool)].min() > 0.2
    assert (marks[0][0, 0] > marks[0][-1, -1] + 0.2).all()


def test_the_gallery_depends_on_its_seed_alone() -> None:
    """A picture in documentation must be made again as it was."""
    photos = small()

    def captions(seed: int) -> list[str]:
        figure = gallery_figure(photos, [get("mixup")], seed=seed)
        return [text.get_text() for axes in figure.axes for text in axes.texts]

    assert captions(1) == captions(1)
    assert captions(1) != captions(2)


def test_photographs_of_a_folder_are_taken_evenly(tmp_path: Path) -> None:
    """The first five of a sorted folder are often one class."""
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        for number in range(5):
            Image.new("RGB", (20, 30), (number, 0, 0)).save(tmp_path / kind / f"{number}.png")
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    photos = folder_photos(tmp_path)
    assert photos.classes == ("cat", "dog")
    assert photos.labels.tolist() == [0, 0, 0, 1, 1]


def test_loose_photographs_are_their_own_classes(tmp_path: Path) -> None:
    """A folder of holiday pictures has no class folders."""
    for name in ("sea", "hill"):
        Image.new("RGB", (20, 30)).save(tmp_path / f"{name}.JPG", format="JPEG")
    assert folder_photos(tmp_path).classes == ("hill", "sea")


def test_too_few_or_broken_photographs_are_told(tmp_path: Path) -> None:
    """One picture cannot be mixed, and a broken one is named."""
    with pytest.raises(DataError, match="holds 0 images"):
        folder_photos(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a.png` cannot be read"):
        folder_photos(tmp_path)
    with pytest.raises(InputError, match="needs two photographs and one method, got 1 and 1"):
        gallery_figure(small(1), [get("mixup")])


def test_an_unknown_method_names_the_nearest() -> None:
    """As everywhere."""
    with pytest.raises(UnknownNameError, match="Did you mean `cutmix`"):
        gallery_methods(["cutmx"])
