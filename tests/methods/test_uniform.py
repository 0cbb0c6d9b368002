"""A mixture of methods."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmix import MixInputs, apply
from rlmix.errors import InputError, MethodError, UnknownNameError
from rlmix.methods import get, names
from rlmix.ops import rng
from rlmix.ops.rng import Streams
from rlmix.testing.methods import batch_of


def test_a_batch_gets_the_plan_of_the_member_that_its_key_chooses() -> None:
    """The same Decision is the action, the baseline and the command-line method: members must be drawn as alone."""
    members = ("none", "mixup", "cutmix", "rmix")
    method = get("uniform", members=members)
    images, _, inputs = batch_of(5, (8, 8))
    chosen = []
    for key in range(24):
        index = rng.host_integer(key, rng.MEMBER, 4)
        alone = get(members[index]).plan(inputs, Streams([key]).fold(rng.MEMBER))
        assert torch.equal(apply(images, method.plan(inputs, Streams([key]))), apply(images, alone))
        chosen.append(index)
    assert set(chosen) == {0, 1, 2, 3}


def test_a_settled_mixture_draws_the_same_plan() -> None:
    """Naming the member first spares its saliency, and must change nothing else; nested mixtures settle through."""
    inner = get("uniform", members=("none", "cutmix", "rmix"))
    method = get("uniform", members=(inner, get("mixup"), get("uniform", members=("mixup", "cutmix"), scope="image")))
    images, _, inputs = batch_of(6, (8, 8))
    settled = set()
    for key in range(40):
        member, own = method.settle(key)
        settled.add(member.name)
        assert torch.equal(
            apply(images, member.plan(inputs, Streams([own]))), apply(images, method.plan(inputs, Streams([key])))
        )
    assert settled == {"none", "cutmix", "rmix", "mixup", "uniform"}
    assert get("cutmix").settle(5) == (get("cutmix"), 5)
    partly = get("uniform", members=("mixup",), probability=0.5)
    assert partly.settle(5) == (partly, 5)


def test_members_are_chosen_equally_often() -> None:
    """Binomial over 9,000 keys, six standard errors: a false alarm in 2e-9 of the runs."""
    counts = [0, 0, 0]
    for key in range(9000):
        counts[rng.host_integer(rng.derive(key, 1), rng.MEMBER, 3)] += 1
    assert max(abs(count - 3000) for count in counts) < 6 * (9000 * (1 / 3) * (2 / 3)) ** 0.5


def test_each_image_may_get_its_own_member() -> None:
    """With scope "image", row b is row b of the chosen member's plan for the whole batch."""
    members = ("none", "cutmix", "mixup")
    images, _, inputs = batch_of(30, (8, 8))
    streams = Streams([8])
    mixed = apply(images, get("uniform", members=members, scope="image").plan(inputs, streams))
    choice = rng.integers(streams.values, rng.MEMBER, (30,), 3).flatten().tolist()
    singles = [apply(images, get(member).plan(inputs, streams.fold(rng.MEMBER))) for member in members]
    for row, member in enumerate(choice):
        assert torch.allclose(mixed[row], singles[member][row], atol=1e-6)
    assert set(choice) == {0, 1, 2}


def test_it_holds_every_other_method_by_default_and_needs_what_they_need() -> None:
    """A new method joins the default mixture; saliency is asked for only where a member wants it."""
    method = get("uniform")
    assert [member.name for member in method.members] == [name for name in names() if name != "uniform"]  # type: ignore[attr-defined]
    assert method.needs_saliency
    assert not get("uniform", members=("none", "cutmix")).needs_saliency


def test_a_mixture_costs_what_its_members_cost() -> None:
    """Whether operations grow, and in what steps, is the members' to say."""
    assert not get("uniform", members=("none", "cutmix")).operations_grow
    assert get("uniform", members=("none", "guidedmixup")).operations_grow
    assert get("uniform", members=("none", "cutmix")).rows_together == 1
    method = get("uniform")
    assert all(method.rows_together % member.rows_together == 0 for member in method.members)  # type: ignore[attr-defined]


@pytest.mark.parametrize("scope", ["image", "batch"])
@given(
    size=st.tuples(st.integers(1, 64), st.integers(1, 64)),
    batch=st.integers(1, 6),
    maps=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    key=st.integers(0, 2**63 - 1),
)
@settings(deadline=None, max_examples=60)
def test_every_method_at_once_serves_images_of_any_size(
    scope: str, size: tuple[int, int], batch: int, maps: tuple[int, int], key: int
) -> None:
    """Odd sides, single rows, maps coarser and finer than the image: a plan, or an error that says what to give."""
    images, labels = torch.rand(batch, 2, *size), torch.arange(batch)
    inputs = MixInputs(batch, *size, saliency=torch.rand(batch, *maps), images=images, labels=labels)
    try:
        plan = get("uniform", scope=scope).plan(inputs, Streams([key]))
    except InputError:
        # Only the grids of R-Mix and Puzzle Mix ask for a least size.
        if min(size) >= 4:
            raise
        return
    mixed = apply(images, plan)
    assert mixed.shape == images.shape
    assert bool(((mixed >= -1e-6) & (mixed <= 1.0 + 1e-6)).all())
    sums = plan.soft_targets(labels, batch).sum(1)
    assert torch.allclose(sums, torch.ones(batch), atol=1e-6)


def test_a_mixture_may_hold_a_mixture() -> None:
    """The inner choice must not repeat the outer one: all four outcomes come."""
    inner = get("uniform", members=("none", "cutmix"))
    outer = get("uniform", members=(inner, get("mixup")))
    _, _, inputs = batch_of(4, (8, 8))
    layouts = {
        (plan.partners.shape[1], plan.window is not None)
        for plan in (outer.plan(inputs, Streams([key])) for key in range(40))
    }
    assert layouts == {(0, False), (1, True), (1, False)}


def test_members_that_are_no_methods_are_refused() -> None:
    """Names are looked up by the registry, with the nearest one in the message."""
    with pytest.raises(MethodError, match="`members` must be one or more methods"):
        get("uniform", members=())
    with pytest.raises(MethodError, match="`members` must be one or more methods"):
        get("uniform", members=(3,))
    with pytest.raises(UnknownNameError, match="there is no mix method `cutmx`. Did you mean `cutmix`"):
        get("uniform", members=("cutmx",))
