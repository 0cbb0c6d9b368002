"""The generated letters: nearly the same everywhere, of all classes, and neither trivial nor impossible."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from rlmix.errors import DataError
from rlmix.training import letters
from rlmix.training.data import load


def test_the_pictures_are_the_same_everywhere() -> None:
    """An instance names its images by their position."""
    images, labels = letters.letters()
    assert images.shape == (letters.TRAIN + letters.TEST, 1, letters.SIDE, letters.SIDE)
    assert hashlib.sha256(labels.numpy().tobytes()).hexdigest()[:16] == "e0d8d0eb81237767"
    # The edges of letters differ between releases of the library that sets them.
    assert float(images.double().mean()) == pytest.approx(0.2846, abs=0.003)
    assert 0.0 <= float(images.min()) < float(images.max()) <= 1.0
    assert labels.bincount(minlength=len(letters.CLASSES)).min() > 200


def test_every_letter_is_set_whole_and_in_every_typeface() -> None:
    """A letter cut off, or one that a font lacks, would be a class that cannot be told apart."""
    sheets = letters.glyphs()
    assert sheets.shape[:2] == (36, len(letters.FONTS))
    edge = torch.cat([sheets[..., 0, :], sheets[..., -1, :], sheets[..., :, 0], sheets[..., :, -1]], -1)
    assert float(edge.max()) == 0.0
    apart = torch.cdist(sheets.transpose(0, 1).flatten(2), sheets.transpose(0, 1).flatten(2))
    assert float((apart + 100 * torch.eye(36)).min()) > 2.0


def test_more_examples_make_a_better_classifier() -> None:
    """Nearest neighbours are a floor: above chance, and far from perfect."""
    arrays = load("letters")
    train, test = (
        torch.nn.functional.avg_pool2d(part, 4).flatten(1) for part in (arrays.train_images, arrays.test_images)
    )
    right = []
    for count in (300, 9000):
        nearest = torch.cdist(test, train[:count]).argmin(1)
        right.append(float((arrays.train_labels[nearest] == arrays.test_labels).double().mean()))
    assert 0.08 < right[0] < 0.2 < right[1] < 0.6


def test_fonts_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Linux distributions may package matplotlib without them."""
    monkeypatch.setattr(letters.mpl, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(DataError, match=r"DejaVuSans\.ttf.*matplotlib from PyPI"):
        letters.glyphs()
