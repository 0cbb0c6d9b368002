"""The table of references: computed once, kept, shared, and never of another set."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from rlmix.envs.block import Library
from rlmix.envs.instances import InstanceSet
from rlmix.envs.pool import Pool
from rlmix.envs.reference import CACHE_VARIABLE, References, reference_keys
from rlmix.errors import CheckpointError, EnvError, OutputError
from rlmix.policy.codec import Catalogue, catalogue
from rlmix.policy.decision import Decision

ENTRIES = catalogue("cheap")


@pytest.fixture(autouse=True)
def _empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))


@pytest.fixture
def many(instance):
    """Return a set that one slot does not go through in a few waves."""
    return InstanceSet("many", tuple(instance(f"many-{index}") for index in range(9)), 4)


def references(instances, calls=None):
    def progress(done, total):
        if calls is not None:
            calls.append((done, total))

    return References(instances, Library(ENTRIES, None, "cpu"), progress)


def test_a_reference_is_the_mean_of_two_uniform_trainings(many):
    """The definition, by the pool itself."""
    instance = many.instances[2]
    pool = Pool(many, seeds=[0], catalogue=ENTRIES, reward=None)
    pool.begin([instance] * 2, reference_keys(instance))
    for _ in range(4):
        _, _, _, info = pool.step([ENTRIES.index("uniform-cheap")] * 2)
    expected = info["score"].mean().item()
    assert references(many).of([instance]).item() == pytest.approx(expected, abs=1e-12)


def test_a_finish_is_a_training_that_mixes_no_more(many):
    """By the pool itself, to the bit; and what has no finish is what it is without one."""
    scores = references(many).finishes([2, 3])
    clean, mixed = ENTRIES.index("none"), ENTRIES.index("mixup-1")
    instance = many.instances[4]
    for place, kept in enumerate((2, 3)):
        pool = Pool(many, seeds=[0], catalogue=ENTRIES, reward=None)
        pool.begin([instance] * 2, reference_keys(instance))
        for decision in range(4):
            _, _, _, info = pool.step([mixed if decision < kept else clean] * 2)
        assert torch.equal(scores[4, mixed, place], torch.as_tensor(info["score"]))
    assert len({tuple(row) for row in scores[4, mixed].tolist()}) == 2
    calls = []
    again = references(many, calls)
    assert torch.equal(again.finishes([3, 2]), scores.flip(2))
    both = again.table().scores
    assert calls == []
    again.path.unlink()
    assert torch.equal(references(many).table().scores, both)
    assert torch.equal(scores[:, clean, 0], both[:, clean])


def test_a_finish_needs_an_entry_that_mixes_nothing(many):
    """Another entry in its place would be another thing."""
    mixed = Catalogue({"mixup": Decision("mixup"), "uniform": Decision("uniform", {"members": (Decision("mixup"),)})})
    with pytest.raises(EnvError, match="no entry `none`"):
        References(many, Library(mixed, None, "cpu"), None).finishes([2])


def test_what_is_known_is_not_computed_again_also_by_another_process(many):
    """A table for two hundred instances takes half a minute."""
    calls = []
    table = references(many, calls)
    first = table.of(many.instances[:2])
    assert calls == [(0, 2), (2, 2)]
    assert torch.equal(table.of(many.instances[:2]), first)
    assert torch.equal(references(many, calls).of(many.instances[:2]), first)
    assert len(calls) == 2


def test_rows_do_not_depend_on_what_is_computed_beside_them(many):
    """One seed must give one table, whoever asks first."""
    together = references(many).of(many.instances[:2])
    path = references(many).path
    path.unlink()
    alone = references(many)
    assert torch.equal(torch.cat([alone.of([one]) for one in many.instances[:2]]), together)


def test_a_pool_that_needs_all_soon_computes_all_at_once(many):
    """Few trainings side by side take nearly as long as many."""
    calls = []
    references(many, calls).of(many.instances[:3])
    assert calls[-1] == (9, 9)


def test_rows_of_another_process_are_kept(many):
    """Two runs that start together must not throw each other's work away."""
    one, other = references(many), references(many)
    one.of(many.instances[:1])
    other.of(many.instances[1:2])
    assert len(json.loads(one.path.read_text())["rows"]) == 2


def test_another_set_or_catalogue_has_another_table(many):
    """A reward against the reference of another problem is noise."""
    paths = {
        references(many).path,
        references(dataclasses.replace(many, instances=many.instances[1:])).path,
        References(many, Library(catalogue("v0"), None, "cpu"), None).path,
    }
    assert len(paths) == 3


def test_an_instance_of_the_same_name_but_other_content_has_its_own_row(many):
    """`Pool.begin` takes instances that are not of the set."""
    table = references(many)
    changed = dataclasses.replace(many.instances[0], noise=0.9)
    assert table.of([many.instances[0]]).item() != table.of([changed]).item()


@pytest.mark.parametrize("text", ["{", '{"schema": "rlmix.reference/4", "digest": "0", "rows": {}}', "[]"])
def test_a_damaged_table_is_named(many, text):
    """Half a file must not become half a table."""
    path = references(many).path
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"is damaged .*Delete it; it is computed anew"):
        references(many)


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_trained(many, monkeypatch, tmp_path):
    """The error must not come at the end of the first wave."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(OutputError, match="cannot be written"):
        references(many)


def test_the_table_holds_every_entry_and_the_references_are_its_mixture(many):
    """One file serves the reward and the question which entry wins where."""
    calls = []
    known = references(many, calls)
    table = known.table()
    assert calls[-1] == (9 * len(ENTRIES), 9 * len(ENTRIES))
    assert table.instances == many.ids
    assert table.entries == ENTRIES.names
    assert table.scores.shape == table.accuracies.shape == (9, len(ENTRIES), 2)
    assert torch.equal(known.of(many.instances), table.scores[:, ENTRIES.index("uniform-cheap")].mean(1))
    pool = Pool(many, seeds=[0], catalogue=ENTRIES, reward=None)
    pool.begin([many.instances[4]], reference_keys(many.instances[4])[1:])
    for _ in range(4):
        pool.step([ENTRIES.index("mixup-1")])
    assert table.accuracies[4, ENTRIES.index("mixup-1"), 1] == pool.scores().accuracy.item()


def test_an_interrupted_table_goes_on_where_it_was(many):
    """A table of a large set takes an hour."""

    def interrupt(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        References(many, Library(ENTRIES, None, "cpu"), interrupt).table()
    calls = []
    resumed = references(many, calls).table()
    assert calls[0] == (0, 9 * (len(ENTRIES) - 1))
    references(many).path.unlink()
    whole = references(many).table()
    assert torch.equal(resumed.scores, whole.scores)
    assert torch.equal(resumed.accuracies, whole.accuracies)


def test_the_number_of_processes_changes_no_row(many):
    """A table of hours is computed on every core, and must be the same table."""
    whole = references(many).table()
    references(many).path.unlink()
    calls = []
    divided = References(many, Library(ENTRIES, None, "cpu"), lambda *counts: calls.append(counts), 2).table()
    assert torch.equal(divided.scores, whole.scores)
    assert torch.equal(divided.accuracies, whole.accuracies)
    assert calls[-1] == (9 * len(ENTRIES), 9 * len(ENTRIES))
