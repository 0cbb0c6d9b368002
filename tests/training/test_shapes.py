"""The generated pictures: the same everywhere, of all classes, and neither trivial nor impossible."""

from __future__ import annotations

import hashlib

import torch

from rlmix.training import shapes
from rlmix.training.data import load


def test_the_pictures_are_the_same_everywhere() -> None:
    """An instance names its images by their position."""
    images, labels = shapes.shapes()
    assert images.shape == (shapes.TRAIN + shapes.TEST, 3, shapes.SIDE, shapes.SIDE)
    assert hashlib.sha256(labels.numpy().tobytes()).hexdigest()[:16] == "2e1696694b098070"
    # The last bits of sines differ between processors; a 64th of a grey level does not.
    means = (images[:200].double().mean((2, 3)) * 64).round().long()
    assert means.sum().item() == 12618
    assert 0.0 <= float(images.min()) < float(images.max()) <= 1.0
    assert labels.bincount(minlength=10).min() > 600


def test_each_class_has_a_mean_picture_of_its_own_and_no_picture_twice() -> None:
    """Classes that look alike on average could still be told apart, but equal ones would be a mistake."""
    arrays = load("shapes")
    assert arrays.classes == shapes.CLASSES
    grey = arrays.train_images.mean(1)
    means = torch.stack([grey[arrays.train_labels == number].mean(0) for number in range(10)])
    distances = torch.cdist(means.flatten(1), means.flatten(1)) + torch.eye(10)
    assert float(distances.min()) > 0.1
    assert len({image.numpy().tobytes() for image in arrays.train_images[:, 0]}) == shapes.TRAIN


def test_more_examples_make_a_better_classifier() -> None:
    """Nearest neighbours are a floor: above chance, and far from perfect."""
    arrays = load("shapes")
    train, test = (
        torch.nn.functional.avg_pool2d(part, 4).mean(1).flatten(1) for part in (arrays.train_images, arrays.test_images)
    )
    right = []
    for count in (200, 6000):
        nearest = torch.cdist(test, train[:count]).argmin(1)
        right.append(float((arrays.train_labels[nearest] == arrays.test_labels).double().mean()))
    assert 0.15 < right[0] < right[1] < 0.9
