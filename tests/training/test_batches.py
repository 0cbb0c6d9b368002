"""The order of the images."""

from __future__ import annotations

import pytest
import torch

from rlmix.errors import ConfigError
from rlmix.training.batches import batches, mislabelled, split
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


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.999])
def test_the_asked_share_of_labels_is_wrong_exactly(share: float) -> None:
    """A label replaced by itself would make the noise weaker than it is said to be."""
    labels = torch.arange(1000) % 10
    given = mislabelled(labels, share, 10, seed=4)
    assert int((given != labels).sum()) == round(1000 * share)
    assert torch.equal(given, mislabelled(labels, share, 10, seed=4))
    assert torch.equal(labels, torch.arange(1000) % 10)
    assert 0 <= int(given.min()) <= int(given.max()) <= 9


def test_wrong_labels_are_any_other_class_equally_often() -> None:
    """Noise that prefers a class is a bias. False alarms: below 1e-6 (six standard deviations of each of 9 counts)."""
    labels = torch.full((20_000,), 3)
    given = mislabelled(labels, 0.9, 10, seed=0)
    counts = torch.bincount(given, minlength=10)
    assert int(counts[3]) == 2000
    others = torch.cat([counts[:3], counts[4:]]).double()
    assert bool(((others - 2000).abs() < 6 * 42.2).all())


def test_other_seeds_have_other_mistakes_and_larger_shares_have_the_smaller() -> None:
    """Seeds must vary what is wrong; shares of one seed must differ in nothing but the share."""
    labels = torch.arange(1000) % 10
    some, more, other = (mislabelled(labels, share, 10, seed) for share, seed in ((0.2, 0), (0.4, 0), (0.2, 1)))
    assert not torch.equal(some, other)
    wrong = some != labels
    assert torch.equal(some[wrong], more[wrong])


def test_wrong_labels_fall_on_training_and_validation_images_and_not_on_the_test() -> None:
    """A user's validation images are labelled no better than the rest; a noisy test would measure something else."""
    data = arrays(1000)
    parts = split(data, 0.5, seed=3, device=torch.device("cpu"), noise=0.4)
    clean = split(data, 0.5, seed=3, device=torch.device("cpu"))
    assert parts.validation is not None
    assert clean.validation is not None
    wrong = [int((part[1] != part[0][:, 0, 0, 0].long()).sum()) for part in (parts.train, parts.validation)]
    assert sum(wrong) == 400
    # Six standard deviations of how many of 400 fall on one half.
    assert abs(wrong[0] - 200) < 6 * 7.8
    assert torch.equal(parts.test[1], data.test_labels)
    # The images are the same ones, in the same order.
    assert torch.equal(parts.train[0], clean.train[0])
    assert torch.equal(parts.validation[0], clean.validation[0])


def test_one_class_cannot_be_mistaken() -> None:
    """Labels would stay as they are, in silence."""
    with pytest.raises(ConfigError, match=r"`noise` 0.5 needs a second class"):
        mislabelled(torch.zeros(10, dtype=torch.int64), 0.5, 1, seed=0)
