"""The pool of trainings beside a Python loop that trains the same classifiers one after the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

import rlmix
from benchmarks.timing import Candidate, Case, Goal
from rlmix.envs import dynamics
from rlmix.envs.instances import Instance, InstanceSet
from rlmix.envs.pool import Pool
from rlmix.envs.reward import score
from rlmix.ops.rng import Streams
from rlmix.policy.codec import catalogue
from rlmix.policy.controller import mixing_key
from rlmix.training.models import registry

HORIZON, SLOTS = 8, 32
POOL, LOOP = "pool", "Python loop"
CATALOGUE = catalogue("cheap")
# Data, model, side, budget, rounds, and how many times as fast as the loop the pool is to be.
KINDS = (("digits", "mlp", None, 120, 8, 5), ("shapes", "convnet", 16, 24, 6, None))


def cases() -> list[Callable[[], Case]]:
    """Return what builds a case, for each kind of training."""
    return [partial(_case, *kind) for kind in KINDS]


def one_by_one(instances: InstanceSet, keys: list[int], entry: str) -> Tensor:
    """Train the classifiers one after the other, as a user would, and return their scores, float64 [N].

    At every decision the probe and validation images go through the net, as they do in the pool.
    """
    method = CATALOGUE.decisions[CATALOGUE.index(entry)].build()
    scores = []
    for instance, key in zip(instances.instances, keys, strict=True):
        source = SOURCES[instance.pictures]
        split = dynamics.split(instance, source)
        channels, height, width = source.images.shape[1:]
        model = registry.build(
            instance.model, channels=channels, height=height, width=width, num_classes=source.num_classes
        )
        model.load_state_dict(dynamics.initial_weights(model, key))
        rates = dynamics.learning_rates(instance)
        optimizer = torch.optim.SGD(model.parameters(), lr=rates[0], momentum=instance.momentum)
        images, labels = source.images[split.train_rows], split.train_labels
        watched = torch.cat([images[:128], source.images[split.validation_rows]])
        for step, rows in enumerate(dynamics.batch_rows(instance, key)):
            if step % (instance.total_steps // HORIZON) == 0:
                with torch.no_grad():
                    model(watched)
            mixed, targets, _ = rlmix.mix(
                images[rows],
                labels[rows],
                method,
                num_classes=source.num_classes,
                generator=Streams([mixing_key(key, step)]),
                check=False,
            )
            optimizer.param_groups[0]["lr"] = rates[step]
            optimizer.zero_grad()
            functional.cross_entropy(model(mixed), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            scores.append(score(model(source.images[split.reward_rows]), split.reward_labels))
    return torch.stack(scores)


def side_by_side(pool: Pool, instances: InstanceSet, keys: list[int], entry: str) -> Tensor:
    """Train the classifiers in a pool and return their scores, float64 [N]."""
    pool.begin(instances.instances, keys)
    done = False
    while not done:
        _, _, done, info = pool.step([CATALOGUE.index(entry)] * len(keys))
    found: Tensor = info["score"]
    return found


SOURCES: dict[tuple[str, int | None, bool], dynamics.Source] = {}


def _case(data: str, model: str, side: int | None, total_steps: int, rounds: int, factor: int | None) -> Case:
    instances = InstanceSet(
        "benchmark",
        tuple(
            Instance(
                id=f"{number}", data=data, seed=number, train_size=400, noise=0.2, model=model, batch_size=32,
                total_steps=total_steps, learning_rate=0.05, side=side,
            )
            for number in range(SLOTS)
        ),
        HORIZON,
    )  # fmt: skip
    first = instances.instances[0]
    SOURCES[first.pictures] = dynamics.load_source(data, side=side)
    keys = list(range(100, 100 + SLOTS))
    pool = Pool(instances, seeds=[0], catalogue=CATALOGUE, reward=None, masks=False)

    def check() -> None:
        few = InstanceSet("few", instances.instances[:2], HORIZON)
        expected, found = one_by_one(few, keys[:2], "cutmix-1"), side_by_side(pool, few, keys[:2], "cutmix-1")
        # Two ways to compute one training, apart by the rounding of some hundred steps.
        torch.testing.assert_close(found, expected, rtol=0.0, atol=0.03)

    text = f"pool of {SLOTS}: at least {factor} times as fast as a Python loop"
    return Case(
        group="pool",
        name=f"{SLOTS} trainings of {total_steps} steps, {model}, {data}, mixing and evaluation included",
        candidates=(
            Candidate(name=LOOP, run=lambda _: one_by_one(instances, keys, "cutmix-1")),
            Candidate(name=POOL, run=lambda _: side_by_side(pool, instances, keys, "cutmix-1")),
        ),
        rounds=rounds,
        goals=() if factor is None else (Goal(candidate=POOL, baseline=LOOP, limit=1 / factor, text=text),),
        check=check,
        notes=(
            f"{SLOTS} classifiers, {SLOTS * total_steps} steps of SGD in all, batches of 32, mixed by CutMix drawn for "
            f"each image; {HORIZON} times on the way the net is asked about probe and validation images, and scored at "
            "the end. The loop is an ordinary one with torch's optimizer and rlmix.mix; the pool also computes the "
            "observations of an agent. Convolutions run one net after the other on a CPU in both."
        ),
    )
