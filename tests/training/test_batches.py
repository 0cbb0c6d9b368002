"""The order of the images."""

from __future__ import annotations

import pytest
import torch

from rlmix.errors import ConfigError
from rlmix.training.batches import batches, split
from rlmix.training.data import Arrays


def arrays(count: int) -> Arrays:
    """Return a data set whose every image is its own number."""
    images = torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    labels = torch.arange(count)
    return Arrays(
        name="numbers",
        train_images=images,
        train_labels=labels,
        test_images=images + 1000,
        test_labels=labels,
        classes=tuple(map(str, range(count))),
    )


def test_every_image_is_seen_once_in_an_epoch() -> None:
    """Drawing with repetition would leave a third of the images out of each epoch."""
    seen = torch.cat([rows for _, rows in batches(12, 4, 2, seed=0)]).view(2, 12)
    assert torch.equal(seen.sort(1).values, torch.arange(12).expand(2, -1))
    assert not torch.equal(seen[0], seen[1])


def test_an_incomplete_batch_is_left_out() -> None:
    """One image alone cannot be mixed, nor normalised by its batch."""
    steps = [(step, len(rows)) for step, rows in batches(11, 4, 3, seed=0)]
    assert steps == [(step, 4) for step in range(6)]


@pytest.mark.parametrize("start", range(7))
def test_the_order_from_a_step_on_is_that_of_the_whole(start: int) -> None:
    """A resumed training must see the images that it would have seen."""
    whole = list(batches(11, 4, 3, seed=5))
    part = list(batches(11, 4, 3, seed=5, start=start))
    assert [step for step, _ in part] == list(range(start, 6))
    assert all(torch.equal(rows, whole[step][1]) for step, rows in part)


def test_another_seed_gives_another_order() -> None:
    """Seeds would otherwise tell nothing about the variance of training."""
    first, second = (next(iter(batches(100, 50, 1, seed=seed)))[1] for seed in (0, 1))
    assert not torch.equal(first, second)


def test_held_out_images_are_in_no_other_part() -> None:
    """A validation image in the training part would make every signal of it too good."""
    parts = split(arrays(50), 0.2, seed=3, device=torch.device("cpu"))
    assert parts.validation is not None
    train, validation = set(parts.train[1].tolist()), set(parts.validation[1].tolist())
    assert len(validation) == 10
    assert not train & validation
    assert train | validation == set(range(50))
    assert torch.equal(parts.train[0][:, 0, 0, 0].long(), parts.train[1])
    assert parts.test[1].tolist() == list(range(50))


def test_nothing_is_held_out_when_nothing_is_asked_for() -> None:
    """A policy without validation signals is a case of its own, not an empty tensor."""
    parts = split(arrays(50), 0.0, seed=3, device=torch.device("cpu"))
    assert parts.validation is None
    assert len(parts.train[1]) == 50


def test_a_training_part_must_remain() -> None:
    """A share that rounds up to everything would train on nothing."""
    with pytest.raises(ConfigError, match=r"`validation` 0.9 leaves none of the 3 training images"):
        split(arrays(3), 0.9, seed=0, device=torch.device("cpu"))
