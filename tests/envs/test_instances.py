"""Instances, sets and recipes: ranges, proportions, digests, and messages about mistakes."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from rlmix.envs.instances import (
    Counts,
    Family,
    InstanceSet,
    Recipe,
    digits_set,
    instance_set,
    load_recipe,
)
from rlmix.errors import ConfigError, EnvError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": 1.0}, r"`noise` must be in \[0, 1\), got 1.0"),
        ({"noise": -0.1}, r"`noise` must be in \[0, 1\), got -0.1"),
        ({"train_size": 0}, r"must be at least 1, got \[0, 16, 8\]"),
        ({"total_steps": 0}, r"must be at least 1"),
        ({"learning_rate": 0.0}, "`learning_rate` must be above 0, got 0.0"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be above 0, got nan"),
        ({"momentum": 1.0}, r"`momentum` must be in \[0, 1\)"),
        ({"weight_decay": -1.0}, "`weight_decay` at least 0"),
        ({"seed": -1}, r"`seed` must be in \[0, 2\*\*63\), got -1"),
        ({"id": ""}, "`id` must not be empty"),
        ({"side": 0}, "`side` must be at least 1"),
        ({"classes": 1}, "`classes` at least 2, got None and 1"),
        ({"imbalance": 0.5}, "`imbalance` must be at least 1"),
        ({"input_noise": -1.0}, "`input_noise` at least 0"),
    ],
)
def test_an_instance_out_of_range_is_refused(instance, changes, message):
    """A negative rate or a noise of 40 instead of 0.4 would otherwise show as a training that never learns."""
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(instance("a"), **changes)


def test_a_budget_that_the_horizon_does_not_divide_is_refused_with_ones_that_fit(instance):
    """Intervals of unequal length would give decisions of unequal weight."""
    with pytest.raises(ConfigError, match="multiple of the horizon 3, got 8. The nearest are 6 and 9"):
        InstanceSet("set", (instance("a"),), 3)


def test_a_set_refuses_nothing_and_the_same_id_twice(instance):
    """An id stands for one problem in caches and reports."""
    with pytest.raises(ConfigError, match="needs one or more instances"):
        InstanceSet("set", (), 4)
    with pytest.raises(ConfigError, match="has the id `a` more than once"):
        InstanceSet("set", (instance("a"), instance("b"), instance("a", noise=0.0)), 4)


def test_an_unknown_id_is_answered_with_the_nearest(tiny):
    """A set has hundreds of ids; nobody can guess which was meant."""
    assert tiny.find("long-2").total_steps == 16
    with pytest.raises(EnvError, match="no instance `long-9`. Did you mean `long-2`"):
        tiny.find("long-9")
    with pytest.raises(EnvError, match="no instance `zebra`"):
        tiny.find("zebra")


def test_the_digest_changes_with_horizon_and_any_field(tiny):
    """Cached references of another set would give wrong rewards in silence."""
    changed = dataclasses.replace(tiny.instances[0], noise=0.21)
    others = [
        dataclasses.replace(tiny, horizon=2),
        dataclasses.replace(tiny, instances=(changed, *tiny.instances[1:])),
        dataclasses.replace(tiny, instances=tiny.instances[1:]),
    ]
    assert len({tiny.digest, *(other.digest for other in others)}) == 4
    assert dataclasses.replace(tiny, name="renamed").digest == tiny.digest


def test_fields_that_came_later_change_the_digest_only_where_they_are_used(instance, tiny):
    """A set keeps its references and its waves, which follow from its digest, when instances learn something new."""
    assert digits_set("heldout").digest == "e7c66219375c0e9c05a30f9e2e10c89375b79b29b3ed31e72a32fc0059f01eef"
    for changes in ({"side": 4}, {"grey": True}, {"classes": 5}, {"imbalance": 2.0}, {"input_noise": 0.1}):
        changed = dataclasses.replace(tiny.instances[0], **changes)
        assert dataclasses.replace(tiny, instances=(changed, *tiny.instances[1:])).digest != tiny.digest


def test_digits_sets_are_as_large_and_as_mixed_as_they_say():
    """The demo's figures are about these sets."""
    sets = [digits_set(part) for part in ("train", "validation", "heldout")]
    assert [len(part) for part in sets] == [192, 48, 144]
    for part in sets:
        budgets = Counter(one.total_steps for one in part.instances)
        assert budgets == {56: len(part) * 3 // 8, 120: len(part) * 3 // 8, 240: len(part) // 4}
        assert all(0.0 <= one.noise <= 0.4 and 0.03 <= one.learning_rate <= 0.3 for one in part.instances)
        assert all(100 <= one.train_size <= 1000 for one in part.instances)
        assert part.horizon == 8
    seeds = [one.seed for part in sets for one in part.instances]
    assert len(set(seeds)) == len(seeds), "parts must not share instances"


def test_a_smaller_set_is_the_beginning_of_a_larger_one():
    """An evaluation on fewer instances must be comparable with one on more."""
    assert digits_set("train", 11).instances == digits_set("train").instances[:11]
    assert {one.total_steps for one in digits_set("heldout", 3).instances} == {56, 120, 240}


def test_the_yaml_file_is_the_built_in_recipe(project):
    """Whoever edits a copy of the file starts from what the defaults are."""
    recipe = load_recipe(project / "configs" / "instances" / "digits.yaml")
    for part in ("train", "validation", "heldout"):
        assert recipe.generate(part) == digits_set(part)


def test_a_misspelt_key_names_the_right_one(tmp_path):
    """A key that is silently ignored leaves its default in force."""
    path = tmp_path / "set.yaml"
    path.write_text("name: a\nfamilies:\n  - {data: digits, total_steps: {8: 1}, train_sizes: [10, 20]}\n")
    with pytest.raises(ConfigError, match=r"there is no key `families.train_sizes`. Did you mean `train_size`"):
        load_recipe(path)


def test_families_are_used_by_their_shares():
    """A set meant to hold three parts of one family and one of another must."""
    families = tuple(
        Family(data=name, total_steps={8: 1}, train_size=(10, 10), share=share) for name, share in (("a", 3), ("b", 1))
    )
    recipe = Recipe(name="two", families=families, horizon=4, counts=Counts(train=8, validation=1, heldout=1))
    assert Counter(one.data for one in recipe.generate("train").instances) == {"a": 6, "b": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_size": (20, 10)}, r"`train_size` must be a lowest and a highest value, got \[20, 10\]"),
        ({"learning_rate": (0.0, 0.1)}, "`learning_rate` must be a lowest and a highest value"),
        ({"noise": (0.0, 1.0)}, r"`noise` must be in \[0, 1\)"),
        ({"total_steps": {}}, "`total_steps` must map each budget"),
        ({"share": 0}, "`share` be at least 1"),
    ],
)
def test_a_family_out_of_range_is_refused(changes, message):
    """Ranges the wrong way round would draw values outside them."""
    fields = {"data": "digits", "total_steps": {8: 1}, "train_size": (10, 20)}
    with pytest.raises(ConfigError, match=message):
        Family(**{**fields, **changes})


def test_recipes_and_names_with_mistakes_are_refused(tmp_path):
    """Each mistake must be named where it is made."""
    with pytest.raises(ConfigError, match="needs one or more `families`"):
        Recipe(name="none", families=())
    with pytest.raises(ConfigError, match="there is no part `test`. .*train, validation, heldout"):
        digits_set("test")
    with pytest.raises(ConfigError, match="needs one or more instances"):
        digits_set("train", 0)
    with pytest.raises(ConfigError, match="no instance set and no file `digit`. Did you mean `digits`"):
        instance_set("digit")


def test_a_set_is_opened_by_name_by_file_or_as_it_is(tiny, project):
    """All three ways lead to the same set."""
    assert instance_set(tiny) is tiny
    assert instance_set("digits", "validation") == digits_set("validation")
    assert instance_set(project / "configs" / "instances" / "digits.yaml", "heldout") == digits_set("heldout")


def written(folder, name, **fields):
    """Write a recipe of two digits instances a part, and return its path."""
    lines = [f"name: {name}", "counts: {train: 2, validation: 2, heldout: 2}", "families:"]
    lines += ["  - {data: digits, total_steps: {56: 1}, train_size: [100, 200]}"]
    lines += [f"{key}: {value}" for key, value in fields.items()]
    path = folder / f"{name}.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("part", ["train", "validation", "heldout"])
def test_a_recipe_that_includes_another_has_its_instances_first(tmp_path, part):
    """And unchanged, so that what is known of them stays true."""
    first = written(tmp_path, "first")
    both = load_recipe(written(tmp_path, "second", includes=[str(first)], seed=3))
    found = both.generate(part)
    assert found.instances[:2] == load_recipe(first).generate(part).instances
    assert found.ids[2:] == (f"second-{part}-0000", f"second-{part}-0001")
    assert found.instances[2:] == dataclasses.replace(both, includes=()).generate(part).instances
    assert both.generate(part, 1).instances == found.instances[:3]


@pytest.mark.parametrize("fields", [{"horizon": 7}, {"includes": ["first.yaml"]}])
def test_a_recipe_includes_those_of_its_horizon_that_include_none(tmp_path, fields):
    """A chain could be a circle."""
    middle = written(tmp_path, "middle", **fields)
    with pytest.raises(ConfigError, match="`last` includes .* same `horizon` and include no other"):
        load_recipe(written(tmp_path, "last", includes=[str(middle)])).generate("train")


def test_a_recipe_may_be_nothing_but_others(tmp_path):
    """So that each can be judged alone, and an agent learn on all."""
    first, second = (written(tmp_path, name, seed=seed) for seed, name in enumerate(("first", "second")))
    both = tmp_path / "both.yaml"
    both.write_text(f"name: both\nincludes: [{first}, {second}]\n")
    found = load_recipe(both).generate("heldout")
    assert found.ids == tuple(f"{name}-heldout-{index:04d}" for name in ("first", "second") for index in range(2))
    assert found.name == "both-heldout"
    both.write_text("name: both\n")
    with pytest.raises(ConfigError, match="one or more `families`, or others that it `includes`"):
        load_recipe(both)


def test_a_recipe_that_includes_a_missing_one_says_so(tmp_path):
    """At the first use, with the file's name."""
    with pytest.raises(ConfigError, match="missing.yaml"):
        load_recipe(written(tmp_path, "last", includes=[str(tmp_path / "missing.yaml")])).generate("train")
