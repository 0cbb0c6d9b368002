"""A block: many steps drawn at once, mixed slots, observations of trainings that broke."""

from __future__ import annotations

import pytest
import torch

from rlmix.envs import block as module
from rlmix.envs import dynamics
from rlmix.envs.block import Block, Library, Slot, buckets
from rlmix.envs.dynamics import Visible
from rlmix.policy.codec import catalogue
from rlmix.policy.controller import mixing_key
from rlmix.policy.signals import names
from rlmix.saliency import input_gradient

ENTRIES = catalogue("v0")


def library():
    return Library(ENTRIES, None, "cpu")


def slots_of(instances, **shown):
    return [Slot(instance=one, key=100 + row, visible=Visible(**shown)) for row, one in enumerate(instances)]


def parameters(block):
    return torch.cat([value.detach().flatten(1) for value in block.stack.parameters.values()], 1)


@pytest.mark.parametrize("pixels", [1, 16 * 3 * 64 * 3])
def test_steps_drawn_at_once_are_those_drawn_one_by_one(monkeypatch, instance, pixels):
    """What is mixed must not depend on how much memory one call may use."""
    found = []
    for limit in (module._DRAWN_PIXELS, pixels):
        monkeypatch.setattr(module, "_DRAWN_PIXELS", limit)
        block = Block.begin(library(), slots_of([instance("a"), instance("b"), instance("c")]))
        for first in (0, 4):
            block.advance([ENTRIES.index(name) for name in ("mixup-1", "uniform-cheap", "uniform")], first, first + 4)
        found.append((parameters(block), block.observe(8)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("name", ENTRIES.names)
def test_each_entry_trains_as_the_method_does_in_a_plain_loop(instance, name):
    """The catalogue's entries are what is deployed: same images, targets and, from equal weights, equal losses."""
    one = instance("a")
    block = Block.begin(library(), slots_of([one]))
    method = ENTRIES.decisions[ENTRIES.index(name)].build()
    source, split = dynamics.load_source("digits"), dynamics.split(one, dynamics.load_source("digits"))
    model, _ = block._library.network(one)
    model.load_state_dict(dynamics.initial_weights(model, 100))
    rows = dynamics.batch_rows(one, 100)[0]
    images, labels = source.images[split.train_rows[rows]], split.train_labels[rows]
    maps = input_gradient(model, images, labels) if method.needs_saliency else None
    inputs = module.MixInputs(16, 8, 8, saliency=maps)
    plan = method.plan(inputs, module.Streams([mixing_key(100, 0)]))
    expected = torch.nn.functional.cross_entropy(model(module.apply(images, plan)), plan.soft_targets(labels, 10))
    block.advance([ENTRIES.index(name)], 0, 1)
    assert block.history.total.item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_halves_of_an_interval_are_told_apart(instance):
    """The change of the loss within an interval says whether a training still moves."""
    block = Block.begin(library(), slots_of([instance("a", total_steps=15)]))
    block.advance([0], 0, 5)
    # The middle step of five belongs to the first half, as for the controller.
    assert (block.history.count.item(), block.history.late_count.item()) == (5.0, 2.0)


def test_hidden_sources_are_zero_and_say_so(instance):
    """A policy must see of a hidden source exactly what it sees where there is none."""
    library_, instances = library(), [instance("a")] * 3
    slots = [
        Slot(instance=one, key=1, visible=shown)
        for one, shown in zip(
            instances, (Visible(), Visible(model=False), Visible(validation=False, examples=False)), strict=True
        )
    ]
    block = Block.begin(library_, slots)
    block.advance([1, 1, 1], 0, 2)
    rows = [dict(zip(names(ENTRIES), row, strict=True)) for row in block.observe(2).tolist()]
    assert [rows[0][f"has/{name}"] for name in ("model", "val", "n")] == [1.0, 1.0, 1.0]
    assert [rows[1][f"has/{name}"] for name in ("model", "val", "n")] == [0.0, 0.0, 1.0]
    assert [rows[2][f"has/{name}"] for name in ("model", "val", "n")] == [1.0, 0.0, 0.0]
    assert all(value == 0.0 for name, value in rows[1].items() if name.startswith(("probe/", "val/")))
    assert rows[1]["context/params"] == 0.0
    assert rows[2]["context/n"] == rows[2]["time/epochs"] == 0.0
    same = [name for name in rows[0] if name.startswith(("loss/", "used/", "last/"))]
    assert all(rows[0][name] == rows[1][name] == rows[2][name] for name in same)


def test_a_training_that_broke_shows_that_and_nothing_else(instance):
    """What is left of a diverged network means nothing; its neighbour is seen as if it were alone."""
    pair = Block.begin(library(), slots_of([instance("a"), instance("b", learning_rate=1e6)]))
    alone = Block.begin(library(), slots_of([instance("a")]))
    pair.advance([0, 0], 0, 8)
    alone.advance([0], 0, 8)
    observed = pair.observe(8)
    assert pair.alive.tolist() == [True, False]
    assert torch.equal(observed[0], alone.observe(8)[0])
    broken = dict(zip(names(ENTRIES), observed[1].tolist(), strict=True))
    assert broken.pop("loss/not_finite") == 1.0
    assert set(broken.values()) == {0.0}
    scores = pair.scores()
    assert scores.score[1].item() == 0.0
    assert scores.score[0].item() == alone.scores().score[0].item()


def test_a_convolutional_net_is_looped_on_a_cpu_and_sees_the_same_batches(instance):
    """Grouped convolutions are slower than a loop there; what is trained on is the same."""
    block = Block.begin(library(), slots_of([instance("a", model="cnn", total_steps=4)] * 2))
    block.advance([0, ENTRIES.index("rmix")], 0, 2)
    assert block.alive.all()
    assert block.observe(2).shape == (2, len(names(ENTRIES)))


@pytest.mark.parametrize("changes", [{}, {"model": "resnet8", "input_noise": 0.5, "classes": 4}])
def test_a_block_survives_its_tree(instance, changes):
    """What a snapshot forgets shows in the steps after it."""
    shared = library()
    block = Block.begin(shared, slots_of([instance("a", **changes), instance("b", **changes)]))
    block.advance([2, 9], 0, 4)
    copy = Block.from_tree(shared, block.tree())
    for one in (block, copy):
        one.advance([10, 3], 4, 8)
    assert torch.equal(parameters(block), parameters(copy))
    assert torch.equal(block.observe(8), copy.observe(8))


def test_buckets_hold_what_can_be_stacked(instance):
    """Nets of two shapes in one stack would fail; of one shape in two stacks they would be slow."""
    instances = [instance("a"), instance("b", total_steps=16), instance("c", noise=0.0), instance("d", model="cnn")]
    assert list(buckets(instances)) == [[0, 2], [1], [3]]


def test_noise_on_images_reaches_training_observation_and_score(instance):
    """Slots of one bucket see the same data set, each with the noise of its own instance."""
    plain, noisy = instance("a"), instance("a", input_noise=1.0)
    block = Block.begin(library(), slots_of([plain, noisy]))
    clean, marked = (split.train_rows for split in block._splits)
    difference = block._images[marked] - block._images[clean]
    assert 0.9 < float(difference.std()) < 1.1
    block.advance([0, 0], 0, 8)
    alone = Block.begin(library(), slots_of([plain]))
    alone.advance([0], 0, 8)
    assert torch.equal(parameters(block)[0], parameters(alone)[0])
    assert torch.equal(block.observe(8)[0], alone.observe(8)[0])
    assert not torch.equal(block.observe(8)[1], alone.observe(8)[0])
    assert block.scores().score[0] == alone.scores().score[0]
