"""Schedules: what holds at each progress by hand, what a random hold repeats, and what comes back from a file."""

from __future__ import annotations

import collections

import pytest
import torch

from rlmix.agents.agent import Feedback
from rlmix.agents.baselines.schedules import (
    RandomHold,
    ScheduleAgent,
    mix_then_none,
    plain_entries,
    progress_of,
    warm_up,
)
from rlmix.errors import InputError, PolicyError, UnknownNameError
from rlmix.policy.codec import catalogue
from rlmix.policy.signals import Context, History, names, signals

V0 = catalogue("v0")
HORIZON = 8


def at(*progress):
    """Return observations of trainings at these progresses, all other entries odd."""
    rows = torch.full((len(progress), len(names(V0))), -0.7)
    rows[:, names(V0).index("time/progress")] = torch.tensor([2 * value - 1 for value in progress], dtype=torch.float32)
    return rows


def over_a_training(agent, rows=1):
    """Return what an agent does over a training, its names by decision, then row."""
    chosen = []
    for decision in range(HORIZON):
        actions = agent.act(at(*[decision / HORIZON] * rows))
        done = decision == HORIZON - 1
        agent.observe(Feedback(actions=actions, observations=at(0), rewards=torch.zeros(rows), done=done))
        chosen.append([V0.names[action] for action in actions.tolist()])
    return chosen


@pytest.mark.parametrize(
    ("agent", "expected"),
    [
        (mix_then_none("cutmix-1", V0, until=0.5), ["cutmix-1"] * 4 + ["none"] * 4),
        # Decisions stand at 0.75 and 0.875: the first at or after 0.8 is the last of all.
        (mix_then_none("rmix", V0, until=0.8), ["rmix"] * 7 + ["none"]),
        (warm_up("mixup-1", V0, until=0.25), ["none"] * 2 + ["mixup-1"] * 6),
        (
            ScheduleAgent(((0, "none"), (0.375, "rmix"), (0.7, "uniform")), V0),
            ["none"] * 3 + ["rmix"] * 3 + ["uniform"] * 2,
        ),
    ],
)
def test_schedules_by_hand(agent, expected):
    """A change one decision early or late is another schedule."""
    assert [row[0] for row in over_a_training(agent)] == expected


@pytest.mark.parametrize("horizon", [3, 7, 8, 24, 1000])
def test_a_change_at_a_decision_falls_on_it(horizon):
    """Progress is a float32 of 2 t/T - 1: rounding must not push j/H into the part before it."""
    for decision in range(1, horizon):
        agent = ScheduleAgent(((0, "none"), (decision / horizon, "rmix")), V0)
        expected = [V0.index("none"), V0.index("rmix")]
        assert agent.act(at((decision - 1) / horizon, decision / horizon)).tolist() == expected


def test_progress_is_read_from_real_observations():
    """The entry's transform belongs to the environment; a changed one must not shift schedules in silence."""
    context = Context.of(1, total_steps=240)
    for step in (0, 60, 210):
        observation = signals(context, History.initial(1, V0), step, catalogue=V0)
        assert progress_of(observation, V0).item() == pytest.approx(step / 240, abs=1e-7)


def test_rows_of_different_progress_are_told_apart():
    """Nothing in the interface says that all rows are at the same progress."""
    agent = mix_then_none("rmix", V0, until=0.5)
    assert agent.act(at(0.9, 0.0, 0.5)).tolist() == [0, V0.index("rmix"), 0]


def test_masked_entries_give_way_to_the_first_allowed_one():
    """Where saliency is not to be had, a method that needs it must not be chosen."""
    mask = torch.ones(2, len(V0), dtype=torch.bool)
    mask[0, V0.index("rmix")] = False
    assert mix_then_none("rmix", V0, until=0.5).act(at(0, 0), mask).tolist() == [0, V0.index("rmix")]
    hold = RandomHold(["rmix"], V0, parts=2, seed=0)
    assert hold.act(at(0, 0), mask).tolist() == [0, V0.index("rmix")]


@pytest.mark.parametrize("parts", [(), ((0.1, "none"),), ((0, "none"), (0, "rmix")), ((0, "none"), (1, "rmix"))])
def test_schedules_out_of_order_are_refused(parts):
    """A schedule that does not say what holds at the beginning would act as entry 0."""
    with pytest.raises(InputError, match="a schedule begins at progress 0 and ascends below 1"):
        ScheduleAgent(parts, V0)
    with pytest.raises(UnknownNameError, match="Did you mean `cutmix-1`"):
        mix_then_none("cutmix", V0, until=0.5)


def test_a_random_hold_holds_and_then_draws_anew():
    """Drawing at every decision is the mixture `uniform` in disguise."""
    agent = RandomHold(plain_entries(V0), V0, parts=4, seed=3)
    chosen = over_a_training(agent, rows=50)
    for decision in range(0, HORIZON, 2):
        assert chosen[decision] == chosen[decision + 1]
    changes = [sum(a != b for a, b in zip(chosen[k], chosen[k + 2], strict=True)) for k in (0, 2, 4)]
    assert min(changes) > 25


def test_a_random_hold_draws_evenly_and_only_its_entries():
    """9 entries over 900 rows: each count is binomial with mean 100, sd 9.4; 60 to 140 fails once in 50,000 seeds."""
    chosen = RandomHold(plain_entries(V0), V0, parts=1, seed=0).act(at(*[0.0] * 900))
    counts = collections.Counter(chosen.tolist())
    assert set(counts) == {V0.index(name) for name in plain_entries(V0)}
    assert 60 < min(counts.values()) <= max(counts.values()) < 140
    assert not {"uniform", "uniform-cheap"} & set(plain_entries(V0))


def test_a_random_hold_repeats_itself_and_changes_with_wave_and_seed():
    """A baseline whose numbers cannot be had again cannot be compared with."""
    first, second = (RandomHold(V0.names, V0, parts=2, seed=1) for _ in range(2))
    waves = [over_a_training(first, rows=20) for _ in range(2)]
    assert [over_a_training(second, rows=20) for _ in range(2)] == waves
    assert waves[0] != waves[1]
    assert over_a_training(RandomHold(V0.names, V0, parts=2, seed=2), rows=20) != waves[0]


def test_agents_come_back_from_their_files(tmp_path):
    """A loaded hold goes on with the wave that would have followed."""
    schedule = ScheduleAgent(((0, "none"), (1 / 3, "rmix")), V0)
    schedule.save(tmp_path / "schedule.json")
    assert ScheduleAgent.load(tmp_path / "schedule.json") == schedule
    hold = RandomHold(plain_entries(V0), V0, parts=4, seed=5)
    over_a_training(hold, rows=9)
    hold.save(tmp_path / "hold.json")
    assert over_a_training(RandomHold.load(tmp_path / "hold.json"), rows=9) == over_a_training(hold, rows=9)
    with pytest.raises(PolicyError, match="must hold exactly the fields"):
        ScheduleAgent.load(tmp_path / "hold.json")
