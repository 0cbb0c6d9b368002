"""Method spaces: ranges, scales, and that nothing is lost on the way to JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlmix.errors import InputError, MethodError, UnknownNameError
from rlmix.policy.codec import catalogue
from rlmix.policy.decision import Decision
from rlmix.policy.space import STEPS, MethodSpace, Parameter, Tunable, method_space

ALPHA = Parameter(name="alpha", low=0.1, high=8.0, scale="log")
LEVEL = Parameter(name="threshold", low=0.0, high=0.99)


def test_scales_divide_a_range_by_difference_or_by_ratio() -> None:
    """A concentration of 0.1 and one of 0.2 differ as much as one of 4 and one of 8."""
    assert [LEVEL.value(share) for share in (0.0, 0.5, 1.0)] == [0.0, 0.495, 0.99]
    assert [ALPHA.value(share) for share in (0.0, 1.0)] == [0.1, 8.0]
    assert ALPHA.value(0.5) == pytest.approx(math.sqrt(0.8), rel=1e-6)
    assert ALPHA.share(0.2) == pytest.approx(1.0 - ALPHA.share(4.0), abs=1e-12)


@given(
    low=st.floats(-1e3, 1e3),
    width=st.floats(1e-2, 1e4),
    step=st.integers(0, STEPS),
    scale=st.sampled_from(["linear", "log"]),
)
@example(low=-512.1472562443752, width=0.01171875, step=0, scale="linear")
@settings(max_examples=300, deadline=None)
def test_every_step_comes_back_from_its_value(low: float, width: float, step: int, scale: Any) -> None:
    """A logged Decision must lead back to the action that was taken, whatever the range."""
    low = abs(low) + 1e-3 if scale == "log" else low
    parameter = Parameter(name="x", low=low, high=low + width, scale=scale)
    value = parameter.value(step / STEPS)
    assert parameter.low <= value <= parameter.high
    assert round(parameter.share(value) * STEPS) == step
    assert parameter.value(parameter.share(value)) == value


@pytest.mark.parametrize("value", [0.1, 0.2, 0.5, 1.0, 2.0, 3.75, 8.0])
def test_round_numbers_are_met_exactly(value: float) -> None:
    """A log that says 0.19999999143 instead of 0.2 hides that the policy does what the paper did."""
    assert ALPHA.value(ALPHA.share(value)) == value


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"low": 8.0}, "must have finite ends in ascending order, got 8.0 to 8.0"),
        ({"high": math.inf}, "finite ends"),
        ({"high": math.nan}, "finite ends"),
        ({"low": True}, "finite ends"),
        ({"low": "0"}, "finite ends"),
        ({"low": 0.0}, "must begin above 0, got 0"),
        ({"low": 8.0 - 1e-7}, "hardly any range"),
        ({"scale": "cubic"}, '`scale` of `alpha` must be "linear" or "log", got \'cubic\''),
        ({"name": ""}, "must be a parameter's name"),
    ],
)
def test_mistaken_ranges_are_named(change: dict[str, Any], match: str) -> None:
    """A range may come from a file."""
    with pytest.raises(InputError, match=match):
        Parameter(**{"name": "alpha", "low": 0.1, "high": 8.0, "scale": "log", **change})
    with pytest.raises(InputError, match=r"`alpha` must be in \[0.1, 8\], got 9"):
        ALPHA.share(9.0)


def test_a_method_must_take_both_ends_of_a_range() -> None:
    """Otherwise a training would stop at the first action near the end."""
    with pytest.raises(MethodError, match="`threshold`"):
        Tunable(Decision("rmix"), (Parameter(name="threshold", low=0.5, high=1.5),))
    with pytest.raises(UnknownNameError, match="no parameter `alhpa`"):
        Tunable(Decision("mixup"), (Parameter(name="alhpa", low=0.5, high=1.5),))
    with pytest.raises(InputError, match="must name each parameter once, got alpha, alpha"):
        Tunable(Decision("mixup", {"alpha": 1.0}), (ALPHA,))
    with pytest.raises(InputError, match="`shares` must be 1 numbers, got 0"):
        Tunable(Decision("mixup"), (ALPHA,)).at([])


@pytest.mark.parametrize("name", ["v0", "cheap"])
def test_every_entry_of_the_catalogue_is_a_point_of_the_space(name: str) -> None:
    """Fixed methods and uniform random mixing must be within a policy's reach, or it could not even equal them."""
    space = method_space(name)
    for decision in catalogue(name).decisions:
        entry, shares = space.find(decision)
        assert space.entries[entry].at(shares) == decision
    assert space.slots == 1
    assert set(catalogue(name).methods) == set(space.catalogue.methods)


def test_observations_remember_the_methods() -> None:
    """`used/METHOD` and `last/METHOD`, without a number for each value of a parameter."""
    space = method_space("v0")
    assert space.names == (
        "none", "mixup", "cutmix", "rmix", "rmix-random", "grafting", "uniform-cheap", "uniform"
    )  # fmt: skip
    assert space.catalogue.names == space.names
    assert space.used == ((False,), (True,), (True,), (True,), (False,), (True,), (False,), (False,))


@pytest.mark.parametrize("name", ["v0", "cheap"])
def test_json_gives_back_the_same_space(name: str) -> None:
    """A policy keeps its space as JSON."""
    first = method_space(name)
    again = MethodSpace.from_json(json.loads(json.dumps(first.to_json())))
    assert again == first
    assert hash(again) == hash(first)
    assert (again.names, again.entries, again.digest) == (first.names, first.entries, first.digest)
    assert repr(first).startswith("MethodSpace(none, mixup")


def test_digest_tells_spaces_apart() -> None:
    """Names, order, methods and ranges all count."""
    wide = Tunable(Decision("mixup"), (Parameter(name="alpha", low=0.1, high=9.0, scale="log"),))
    none, mixup = Tunable(Decision("none")), Tunable(Decision("mixup"), (ALPHA,))
    spaces = [{"a": none, "b": mixup}, {"b": mixup, "a": none}, {"a": none, "c": mixup}, {"a": none, "b": wide}]
    assert len({MethodSpace(entries) for entries in spaces}) == 4


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ([], "one or more methods by name"),
        ([{"name": 1}], "a method space is a list"),
        ([{"name": "a"}], "the entry `a` cannot be used: an entry of a method space is"),
        ([{"name": "a", "decision": {"method": "none"}, "parameters": [{"name": "x"}]}], "is a decision and a list"),
        ([{"name": "a", "decision": {"method": "nnoe"}, "parameters": []}], "Did you mean `none`"),
        ([{"name": "a", "decision": {"method": "none"}, "parameters": []}] * 2, "has the name `a` twice"),
        ([{"name": name, "decision": {"method": "none"}, "parameters": []} for name in "ab"], "must differ in more"),
    ],
)
def test_json_of_another_form_is_refused(document: object, match: str) -> None:
    """A space from a file is checked before anything is built from it."""
    with pytest.raises(InputError, match=match):
        MethodSpace.from_json(document)


def test_decisions_outside_the_space_are_refused() -> None:
    """Encoding to a neighbour would log what was not done."""
    space = method_space("cheap")
    with pytest.raises(UnknownNameError, match="the method space has no `rmix`. .*`mixup`"):
        space.find(Decision("rmix"))
    with pytest.raises(UnknownNameError, match=r"has no `mixup\(alpha=1.0, probability=0.5\)`"):
        space.find(Decision("mixup", {"alpha": 1.0}, probability=0.5))
    with pytest.raises(InputError, match=r"`alpha` must be in \[0.1, 8\], got 9"):
        space.find(Decision("mixup", {"alpha": 9.0}))
    with pytest.raises(UnknownNameError, match="there is no method space `chaep`. Did you mean `cheap`"):
        method_space("chaep")
