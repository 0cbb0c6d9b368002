"""One decision of a learned policy in process, and what a controller adds to a training step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

import rlmix
from benchmarks.timing import Candidate, Case
from rlmix.ops import rng
from rlmix.policy.artifact import LearnedPolicy
from rlmix.policy.codec import catalogue
from rlmix.policy.controller import MixController
from rlmix.policy.decision import Decision
from rlmix.policy.network import PolicyNetwork
from rlmix.policy.signals import names
from rlmix.policy.sources import Learned

BATCH, SIDE, CLASSES, STEPS, ROUNDS = 128, 32, 10, 4000, 300
MICROSECONDS = 100
MODE, DRAWN = "signals to Decision", "signals to Decision, exploring"
MIX, QUIET, DECIDING = "rlmix.mix alone", "controller, no decision due", "controller, a decision at each call"


def policy(horizon: int, seed: int = 5) -> LearnedPolicy:
    """Return a policy with random weights over the whole observation and the catalogue `v0`, two layers of 64 units."""
    entries = catalogue("v0")
    observed = names(entries)
    generator = torch.Generator().manual_seed(seed)
    widths = (len(observed), 64, 64)

    def layers(outputs: int) -> tuple[tuple[Tensor, Tensor], ...]:
        sizes = (*widths, outputs)
        return tuple(
            (torch.randn(after, before, generator=generator) / before**0.5, torch.zeros(after))
            for before, after in pairwise(sizes)
        )

    return LearnedPolicy(
        network=PolicyNetwork(actor=layers(len(entries)), critic=layers(1)),
        observation_names=observed,
        low=torch.full((len(observed),), -2.0),
        high=torch.full((len(observed),), 2.0),
        catalogue=entries,
        horizon=horizon,
        card={},
    )


def cases() -> list[Callable[[], Case]]:
    """Return what builds a case: the decision alone, and the controller's whole call."""
    return [_decision, _controller]


def _decision() -> Case:
    chooser = Learned(policy(8))
    generator = torch.Generator().manual_seed(6)
    allowed = torch.ones(len(chooser.names), dtype=torch.bool)

    def observation() -> Tensor:
        return torch.randn(len(chooser.policy.observation_names), generator=generator)

    def decide(seen: Tensor) -> Decision:
        return chooser.decisions[chooser.choose(0, seen, allowed, None)]

    def explore(seen: Tensor) -> Decision:
        return chooser.decisions[chooser.choose(0, seen, allowed, rlmix.Streams([rng.derive(7, 2, 0)]))]

    def check() -> None:
        for _ in range(20):
            seen = observation()
            expected = int(chooser.policy.act(seen.unsqueeze(0), allowed.unsqueeze(0)))
            assert decide(seen) == chooser.decisions[expected]

    return Case(
        group="decision",
        name="one decision in process",
        candidates=(
            Candidate(name=MODE, run=decide, prepare=observation),
            Candidate(name=DRAWN, run=explore, prepare=observation),
        ),
        rounds=1000,
        ceilings=((MODE, MICROSECONDS),),
        check=check,
        notes=(
            "From finished signals on the CPU to a Decision: clip, three layers, mask, the most probable entry; the "
            "second line draws from the policy's distribution instead. The forwards that make the signals are in the "
            "controller's figures."
        ),
    )


def _controller() -> Case:
    generator = torch.Generator().manual_seed(8)
    images = torch.rand(BATCH, 3, SIDE, SIDE, generator=generator)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 128), nn.ReLU(), nn.Linear(128, CLASSES))

    def controller(horizon: int) -> MixController:
        # One entry is allowed, so that all candidates carry out the same method.
        return MixController(
            policy(horizon), num_classes=CLASSES, total_steps=STEPS, seed=9, num_examples=50_000, allow=["cutmix-1"]
        )

    quiet, deciding = controller(1), controller(STEPS)
    quiet(images, labels, model=model)

    def mix(step: int) -> tuple[Tensor, Tensor]:
        streams = rlmix.Streams([rng.derive(9, 1, step)])
        mixed = rlmix.mix(images, labels, "cutmix", num_classes=CLASSES, generator=streams)
        return mixed.images, mixed.targets

    def check() -> None:
        for horizon in (1, STEPS):
            fresh = controller(horizon)
            for step in range(3):
                for given, expected in zip(fresh(images, labels, model=model), mix(step), strict=True):
                    assert torch.equal(given, expected)

    return Case(
        group="decision",
        name=f"the controller's whole call, CutMix, {BATCH}x3x{SIDE}x{SIDE}",
        candidates=(
            Candidate(name=MIX, run=lambda _: mix(0)),
            Candidate(name=QUIET, run=lambda _: quiet(images, labels, model=model)),
            Candidate(name=DECIDING, run=lambda _: deciding(images, labels, model=model)),
        ),
        rounds=ROUNDS,
        check=check,
        notes=(
            "The model is a perceptron with 128 units, so nearly all is the controller's own work: at a decision the "
            f"forward over the {BATCH} recent images, the signals, their single reading, the choice. A training "
            "decides a few times, so nearly all its calls are like the second line."
        ),
    )
