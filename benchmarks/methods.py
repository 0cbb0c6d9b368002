"""What a whole call of each method costs, and that a mixture costs no more than its members."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import rlmix
from benchmarks.timing import Candidate, Case, Goal
from rlmix.methods.method import AbstractMethod
from rlmix.methods.registry import get, names
from rlmix.ops.rng import Streams

BATCH, SIDE, CLASSES = 128, 32, 100
MEMBERS, UNIFORM = "each member once, by itself", "uniform, each member chosen once"
NOTES = (
    "A whole call of `rlmix.mix` with its checks: draw, apply, soft targets. Saliency maps of 32x32 are given, so what "
    "they cost to compute is not in these figures. Defaults throughout."
)


def cases() -> list[Callable[[], Case]]:
    """Return what builds a case: every method beside `none`, and a mixture beside its members."""
    return [_each, _mixture]


def _batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(BATCH, 3, SIDE, SIDE, generator=generator)
    return images, torch.arange(BATCH) % CLASSES, torch.rand(BATCH, SIDE, SIDE, generator=generator)


def _call(method: AbstractMethod, key: int, images: Tensor, labels: Tensor, maps: Tensor) -> Tensor:
    streams = Streams([key])
    return rlmix.mix(images, labels, method, num_classes=CLASSES, generator=streams, saliency=maps).images


def _alone(method: AbstractMethod, batch: tuple[Tensor, Tensor, Tensor], _: object) -> Tensor:
    return _call(method, 7, *batch)


def _each() -> Case:
    batch = _batch()
    return Case(
        group="methods",
        name=f"a whole call of each method, {BATCH}x3x{SIDE}x{SIDE}, {CLASSES} classes",
        candidates=[Candidate(name=name, run=partial(_alone, get(name), batch)) for name in names()],
        rounds=40,
        notes=NOTES,
    )


def _mixture() -> Case:
    batch = _batch()
    mixture = get("uniform")
    chosen: dict[str, tuple[int, AbstractMethod, int]] = {}
    key = 0
    while len(chosen) < len(names()) - 1:
        member, theirs = mixture.settle(key)
        chosen.setdefault(member.name, (key, member, theirs))
        key += 1

    def check() -> None:
        for outer, member, inner in chosen.values():
            assert torch.equal(_call(mixture, outer, *batch), _call(member, inner, *batch)), member.name

    def run(_: object, calls: list[partial[Tensor]]) -> None:
        for call in calls:
            call()

    members = [partial(_call, member, inner, *batch) for _, member, inner in chosen.values()]
    mixed = [partial(_call, mixture, outer, *batch) for outer, _, _ in chosen.values()]
    return Case(
        group="methods",
        name=f"a mixture of all methods, {BATCH}x3x{SIDE}x{SIDE}",
        candidates=[
            Candidate(name=MEMBERS, run=partial(run, calls=members)),
            Candidate(name=UNIFORM, run=partial(run, calls=mixed)),
        ],
        rounds=15,
        goals=[Goal(candidate=UNIFORM, baseline=MEMBERS, limit=1.1, text="uniform: at most 1.1 times its members")],
        check=check,
        notes=f"{NOTES} `uniform` is called with keys that choose every member once; the members get the same keys.",
    )
