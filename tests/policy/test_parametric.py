"""Codecs over a method space: actions and Decisions invert each other, and explored parameters have their law."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmix.errors import InputError, UnknownNameError
from rlmix.ops.rng import Streams
from rlmix.policy.codec import AbstractCodec, Catalogue, catalogue, codec_of
from rlmix.policy.decision import Decision
from rlmix.policy.parametric import (
    MARGIN,
    HybridCodec,
    MultiDiscreteCodec,
    codec_from_json,
    find_codec,
)
from rlmix.policy.space import MethodSpace, Parameter, Tunable, method_space

# Entries with no, one and two open parameters, so that slots are unused in different ways.
WIDE = MethodSpace(
    {
        "none": Tunable(Decision("none")),
        "mixup": Tunable(Decision("mixup"), (Parameter(name="alpha", low=0.1, high=8.0, scale="log"),)),
        "grafting": Tunable(
            Decision("grafting", {"norm": 1}, probability=0.5),
            (
                Parameter(name="temperature", low=0.1, high=4.0, scale="log"),
                Parameter(name="rate", low=0.0, high=1.0),
            ),
        ),
    }
)
HYBRIDS = (HybridCodec(method_space("v0")), HybridCodec(WIDE))
LEVELS = (MultiDiscreteCodec(method_space("v0")), MultiDiscreteCodec(WIDE, 7))
numbers = st.floats(-1.0, 1.0, width=32)


@given(codec=st.sampled_from(HYBRIDS), data=st.data())
@settings(max_examples=300, deadline=None)
def test_hybrid_actions_and_decisions_invert_each_other_exactly(codec: HybridCodec, data: st.DataObject) -> None:
    """What was chosen, carried out, logged and replayed must be one thing, to the last bit."""
    action = data.draw(st.tuples(*[numbers] * codec.shape[0]))
    decision = codec.decode(action)
    again = codec.encode(decision)
    assert codec.decode(again) == decision
    assert codec.encode(codec.decode(again)) == again
    assert codec.entry(again) == codec.entry(action)
    # An action that went through an environment is float32.
    assert tuple(np.asarray(again, np.float32).tolist()) == again
    used = codec.space.used[codec.entry(action)]
    for given_, back, counts in zip(action[1:], again[1:], used, strict=True):
        assert abs(given_ - back) <= 2.0**-24 if counts else back == 0.0
    assert Decision.from_json(json.loads(json.dumps(decision.to_json()))) == decision


@given(codec=st.sampled_from(LEVELS), data=st.data())
@settings(max_examples=200, deadline=None)
def test_levels_and_decisions_invert_each_other_exactly(codec: MultiDiscreteCodec, data: st.DataObject) -> None:
    """As above."""
    action = data.draw(st.tuples(*(st.integers(0, size - 1) for size in codec.sizes)))
    again = codec.encode(codec.decode(action))
    assert codec.decode(again) == codec.decode(action)
    used = (True, *codec.space.used[action[0]])
    assert again == tuple(number if counts else 0 for number, counts in zip(action, used, strict=True))


def test_the_first_number_picks_the_method_in_equal_bins() -> None:
    """floor((a + 1) / 2 * M), the last bin closed, each written as its middle."""
    codec = HYBRIDS[1]
    ends = {-1.0: 0, -0.34: 0, -0.33: 1, 0.0: 1, 0.33: 1, 0.34: 2, 1.0: 2}
    assert {first: codec.entry((first, 0.0, 0.0)) for first in ends} == ends
    assert codec.encode(Decision("none")) == pytest.approx((-2 / 3, 0.0, 0.0), abs=1e-7)
    assert codec.decode((1.0, -1.0, 1.0)) == Decision(
        "grafting", {"norm": 1, "temperature": 0.1, "rate": 1.0}, probability=0.5
    )
    assert codec.decode((0.0, 1.0, -1.0)).text == "mixup(alpha=8.0)"


def test_levels_divide_the_scale_of_a_parameter() -> None:
    """Five levels of a concentration are five equal ratios."""
    found = [dict(LEVELS[0].decode((1, level)).params)["alpha"] for level in range(5)]
    assert found == pytest.approx([0.1 * 80 ** (level / 4) for level in range(5)], rel=1e-6)
    with pytest.raises(UnknownNameError, match=r"no level means `mixup\(alpha=1.0\)`; the nearest is"):
        LEVELS[0].encode(Decision("mixup", {"alpha": 1.0}))


@pytest.mark.parametrize(
    ("codec", "action", "match"),
    [
        (HYBRIDS[0], 3, "must be 2 numbers, got 3"),
        (HYBRIDS[0], (0.0,), "must be 2 numbers"),
        (HYBRIDS[0], (0.0, 1.5), r"must be numbers in \[-1, 1\], got \[0.0, 1.5\]"),
        (HYBRIDS[0], (math.nan, 0.0), r"numbers in \[-1, 1\]"),
        (LEVELS[0], (0, 5), r"must be below \[8, 5\] and at least 0, got \[0, 5\]"),
        (LEVELS[0], (-1, 0), "at least 0"),
        (LEVELS[0], (0.5, 0), "must be a whole number, got 0.5"),
        (LEVELS[0], (0, 0, 0), "must be 2 numbers"),
    ],
)
def test_actions_of_another_form_are_refused(codec: AbstractCodec, action: Any, match: str) -> None:
    """An action from another space must not be read as something else."""
    with pytest.raises(InputError, match=match):
        codec.decode(action)
    with pytest.raises(InputError, match=match):
        codec.entry(action)


@pytest.mark.parametrize("codec", [codec_of(catalogue("v0")), *HYBRIDS, *LEVELS])
def test_json_gives_back_the_same_codec(codec: AbstractCodec) -> None:
    """A policy keeps what its actions mean."""
    document = json.loads(json.dumps(codec.to_json()))
    again = codec_from_json(document)
    assert (again.kind, again.digest, again.shape, again.outputs) == (
        codec.kind, codec.digest, codec.shape, codec.outputs
    )  # fmt: skip
    assert again.catalogue == codec.catalogue
    with pytest.raises(InputError, match="not the ones that their digest belongs to"):
        codec_from_json({**document, "digest": "0" * 64})
    with pytest.raises(InputError, match='described by their kind and these keys: "discrete": catalogue, digest'):
        codec_from_json({**document, "more": 1})


def test_codecs_are_found_by_kind_and_name() -> None:
    """A configuration says two words."""
    found = [find_codec(kind, "cheap") for kind in ("discrete", "multidiscrete", "hybrid")]
    assert [(codec.kind, codec.shape, codec.outputs, codec.whole) for codec in found] == [
        ("discrete", (), 5, True),
        ("multidiscrete", (2,), 4 + 5, True),
        ("hybrid", (2,), 4 + 8, False),
    ]
    assert len({codec.digest for codec in found}) == 3
    assert find_codec("hybrid", found[2]) is found[2]
    assert find_codec("hybrid", WIDE).digest == HYBRIDS[1].digest
    with pytest.raises(InputError, match=r"`action` must be one of 'discrete', .*, got 'box'"):
        find_codec("box", "v0")
    with pytest.raises(InputError, match='`action` is "hybrid", and the codec that was given is "discrete"'):
        find_codec("hybrid", found[0])
    with pytest.raises(InputError, match='a method space is for action="multidiscrete" or "hybrid"'):
        find_codec("discrete", WIDE)
    with pytest.raises(InputError, match='"hybrid" takes a MethodSpace'):
        find_codec("hybrid", Catalogue({"a": Decision("none")}))
    with pytest.raises(InputError, match="`levels` must be a whole number from 2 to 1024, got 1"):
        MultiDiscreteCodec(WIDE, 1)


def test_typical_parameters_are_means_and_most_probable_levels() -> None:
    """By hand: softplus(1) = 1.3133, softplus(0) = 0.6931."""
    outputs = torch.zeros(2, HYBRIDS[1].outputs)
    concentrations = outputs[:, 3:].view(2, 3, 2, 2)
    concentrations[:, 2, 0, 0] = 1.0
    entries = torch.tensor([2, 0])
    actions = HYBRIDS[1].complete(outputs, entries)
    mean = 2.313262 / (2.313262 + 1.693147)
    assert actions[0].tolist() == pytest.approx([2 / 3, 2 * mean - 1, 0.0], abs=1e-6)
    assert actions[1].tolist() == pytest.approx([-2 / 3, 0.0, 0.0], abs=1e-7)
    assert [HYBRIDS[1].entry(row) for row in actions.tolist()] == [2, 0]
    levels = torch.zeros(1, LEVELS[1].outputs)
    levels[0, 3 + 4], levels[0, 3 + 7 + 6] = 1.0, 2.0
    assert LEVELS[1].complete(levels, torch.tensor([1])).tolist() == [[1, 4, 6]]


def test_explored_parameters_have_the_beta_law() -> None:
    """Kolmogorov-Smirnov against the exact law at n = 4,000: false alarms below 2 exp(-2 n d^2) = 2e-7 for each of 4.

    The Beta distribution function is that of a binomial tail for whole concentrations; 1 + softplus reaches them.
    """
    codec, count = HYBRIDS[1], 4000
    for alpha, beta in ((1, 1), (2, 5), (7, 3), (30, 2)):
        # softplus(x) = y for x = log(exp(y) - 1); y = 0 is minus infinity, -40 is near enough.
        raw = [math.log(math.expm1(one - 1)) if one > 1 else -40.0 for one in (alpha, beta)]
        outputs = torch.zeros(count, codec.outputs)
        outputs[:, 3:].view(count, 3, 2, 2)[:, 1, 0] = torch.tensor(raw)
        keys = Streams(list(range(count)))
        actions = codec.complete(outputs, torch.full((count,), 1), keys)
        assert torch.equal(actions, codec.complete(outputs, torch.full((count,), 1), keys))
        shares = ((actions[:, 1].double() + 1) / 2).sort().values
        total = alpha + beta - 1
        exact = sum(math.comb(total, k) * shares**k * (1 - shares) ** (total - k) for k in range(alpha, total + 1))
        steps = torch.arange(count, dtype=torch.float64) / count
        distance = torch.maximum((exact - steps).abs(), (exact - steps - 1 / count).abs()).max()
        assert float(distance) < math.sqrt(math.log(2 / 2e-7) / (2 * count)) + MARGIN
        assert torch.equal(actions[:, 2], torch.zeros(count))


def test_explored_levels_have_their_probabilities() -> None:
    """Five standard deviations on each of five levels: false alarms below 3e-6."""
    codec, count = LEVELS[0], 4000
    outputs = torch.zeros(count, codec.outputs)
    outputs[:, 8:] = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    levels = codec.complete(outputs, torch.full((count,), 1), Streams(list(range(count))))[:, 1]
    expected = outputs[0, 8:].double().softmax(0)
    shares = torch.bincount(levels, minlength=5) / count
    assert ((shares - expected).abs() < 5 * (expected * (1 - expected) / count).sqrt()).all()
