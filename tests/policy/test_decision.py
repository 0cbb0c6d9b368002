"""Decisions: equality, text, JSON, and what they build."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar, final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmix.errors import InputError, MethodError, UnknownNameError
from rlmix.methods import registry
from rlmix.methods.method import AbstractMethod
from rlmix.ops.rng import Streams
from rlmix.plan import MixPlan
from rlmix.policy.decision import Decision
from rlmix.types import MixInputs

MIXTURE = Decision("uniform", {"members": [Decision("none"), Decision("mixup", {"alpha": 0.2})], "scope": "batch"})

values = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-1e6, 1e6) | st.text(max_size=5)
decisions = st.recursive(
    st.builds(Decision, st.text(max_size=5), st.dictionaries(st.text(min_size=1, max_size=3), values, max_size=3)),
    lambda inner: st.builds(lambda members: Decision("m", {"members": members}), st.lists(inner, max_size=3)),
    max_leaves=4,
)


def test_order_of_parameters_does_not_matter() -> None:
    """Decisions are keys of dictionaries; two spellings of one thing must not be two keys."""
    first = Decision("rmix", {"alpha": 1.0, "threshold": 0.3})
    second = Decision("rmix", {"threshold": 0.3, "alpha": 1.0})
    assert first == second
    assert hash(first) == hash(second)
    assert first != Decision("rmix", {"threshold": 0.3, "alpha": 1.0}, probability=0.5)


@settings(max_examples=60, deadline=None)
@given(decisions)
def test_json_gives_back_the_same(decision: Decision) -> None:
    """A Decision that changes on its way to a file or a service replays something else."""
    again = Decision.from_json(json.loads(json.dumps(decision.to_json())))
    assert again == decision
    assert hash(again) == hash(decision)


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ([], "has the keys `method`, `params` and `probability`, got list"),
        ({"method": "mixup", "alpha": 1.0}, "got .*'alpha', 'method'"),
        ({"params": {}}, "has the keys"),
        ({"method": 3}, "`method` must be a string"),
        ({"method": "mixup", "params": [1]}, "`params` an object"),
        ({"method": "uniform", "params": {"members": [{"metod": "none"}]}}, "got .*'metod'"),
    ],
)
def test_json_of_another_form_is_refused(document: object, match: str) -> None:
    """Documents come over the wire: nothing may be guessed from a wrong one."""
    with pytest.raises(InputError, match=match):
        Decision.from_json(document)


def test_deeply_nested_json_is_refused() -> None:
    """A document made to exhaust the stack must end in an error that callers catch."""
    document: object = {"method": "none"}
    for _ in range(200):
        document = {"method": "uniform", "params": {"members": [document]}}
    with pytest.raises(InputError, match="nested more than"):
        Decision.from_json(document)
    value: object = 1
    for _ in range(200):
        value = [value]
    with pytest.raises(InputError, match="nested more than"):
        Decision.from_json({"method": "rmix", "params": {"grids": value}})


def test_tensors_and_bad_numbers_are_refused() -> None:
    """What cannot be compared, hashed or written as JSON is no part of a Decision."""
    with pytest.raises(MethodError, match="`alpha` is a Tensor; .* Use float"):
        Decision("mixup", {"alpha": torch.tensor(1.0)})
    with pytest.raises(MethodError, match="`alpha` must be finite"):
        Decision("mixup", {"alpha": float("nan")})
    with pytest.raises(MethodError, match=r"`probability` must be a number in \[0, 1\], got 1.5"):
        Decision("mixup", probability=1.5)
    with pytest.raises(MethodError, match="`probability` is no entry of `params`"):
        Decision("mixup", {"probability": 0.5})


def test_built_methods_have_the_parameters() -> None:
    """The Decision is what is logged, the method what is done; they must be the same thing."""
    method = Decision("mixup", {"alpha": 0.2}, probability=0.5).build()
    assert method == registry.get("mixup", alpha=0.2, probability=0.5)
    assert MIXTURE.build() == registry.get(
        "uniform", members=(registry.get("none"), registry.get("mixup", alpha=0.2)), scope="batch"
    )


def test_unknown_methods_and_parameters_are_named() -> None:
    """The error comes when the Decision is used, with the nearest right name."""
    with pytest.raises(UnknownNameError, match="no mix method `mixpu`. Did you mean `mixup`"):
        Decision("mixpu").build()
    with pytest.raises(UnknownNameError, match="no parameter `alhpa`. Did you mean `alpha`"):
        Decision("mixup", {"alhpa": 1.0}).build()
    with pytest.raises(MethodError, match="`alpha` must be a number above 0"):
        Decision("mixup", {"alpha": "large"}).build()
    with pytest.raises(MethodError, match="wrong type"):
        Decision("rmix", {"grids": 4}).build()


def test_usage_is_the_expected_share_of_each_method() -> None:
    """The memory of an observation counts mixtures by what they really do."""
    assert Decision("cutmix").usage() == {"cutmix": 1.0}
    assert Decision("cutmix", probability=0.25).usage() == {"none": 0.75, "cutmix": 0.25}
    assert MIXTURE.usage() == {"none": 0.5, "mixup": 0.5}
    nested = Decision("uniform", {"members": (MIXTURE, Decision("mixup"))}).usage()
    assert nested == {"none": 0.25, "mixup": 0.75}
    assert sum(Decision("uniform").usage().values()) == pytest.approx(1.0)


def test_text_is_short_and_complete() -> None:
    """Logs show Decisions as text."""
    assert Decision("none").text == "none"
    assert Decision("mixup", {"alpha": 0.2}, probability=0.5).text == "mixup(alpha=0.2, probability=0.5)"
    assert MIXTURE.text == "uniform(members=(none, mixup(alpha=0.2)), scope=batch)"


def test_saliency_is_needed_if_a_member_needs_it() -> None:
    """The controller masks what it cannot carry out."""
    assert Decision("rmix").needs_saliency
    assert not MIXTURE.needs_saliency
    assert Decision("uniform", {"members": (MIXTURE, Decision("grafting"))}).needs_saliency


@pytest.mark.parametrize("name", registry.names())
def test_a_method_is_described_by_a_decision_that_builds_it(name: str) -> None:
    """Whoever hands a method to a controller finds it in the log."""
    assert Decision.of(registry.get(name)).build() == registry.get(name)


def test_description_leaves_defaults_out() -> None:
    """The text of a Decision would be unreadable with every default in it."""
    assert Decision.of(registry.get("mixup", alpha=0.5)) == Decision("mixup", {"alpha": 0.5})
    assert Decision.of(registry.get("mixup", probability=0.5)) == Decision("mixup", probability=0.5)
    assert Decision.of(MIXTURE.build()).usage() == MIXTURE.usage()
    with pytest.raises(MethodError, match="`alpha` is a Tensor"):
        Decision.of(registry.get("mixup", alpha=torch.ones(4)))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign(AbstractMethod):
    """A method that is not registered."""

    name: ClassVar[str] = "foreign"
    strength: float = 0.5

    def _plan(self, inputs: MixInputs, streams: Streams) -> MixPlan:
        return registry.get("none").plan(inputs, streams)


def test_methods_of_others_are_described_too() -> None:
    """A method need not be registered to be used, only to be built from its name."""
    assert Decision.of(Foreign(strength=0.7)).text == "foreign(strength=0.7)"
    with pytest.raises(UnknownNameError, match="no mix method `foreign`"):
        Decision.of(Foreign()).build()
