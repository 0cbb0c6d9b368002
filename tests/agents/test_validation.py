"""What is measured while an agent learns, and the alarm for one that has collapsed."""

from __future__ import annotations

import logging

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlmix.agents.validation import GAIN, SHARE, CollapseAlarm, Validation
from rlmix.envs.instances import Family, Recipe
from rlmix.monitor.board import Board
from rlmix.policy.artifact import LearnedPolicy
from rlmix.policy.codec import catalogue
from rlmix.policy.network import PolicyNetwork
from rlmix.policy.signals import names

ENTRIES = catalogue("cheap")


def constant(entry: str) -> LearnedPolicy:
    """Return a policy that always chooses one entry."""
    weights = torch.zeros(len(ENTRIES), 1), torch.nn.functional.one_hot(torch.tensor(ENTRIES.index(entry)), 5).float()
    low, high = torch.zeros(1), torch.ones(1)
    return LearnedPolicy(
        network=PolicyNetwork(actor=(weights,), critic=None), observation_names=names(ENTRIES)[:1], low=low, high=high,
        catalogue=ENTRIES, horizon=4, card={},
    )  # fmt: skip


def test_the_share_of_the_method_chosen_most_is_measured() -> None:
    """A mixture counts as a method of its own: to choose it always is to be uniform random mixing."""
    family = Family(data="digits", total_steps={8: 1}, train_size=(100, 200))
    instances = Recipe(name="tiny", families=(family,), horizon=4).generate("validation", 2)
    measured = Validation(instances, ENTRIES, seed=0, device="cpu", data_dir=None)
    assert measured(constant("mixup-1"))[SHARE] == 1.0
    uniform = measured(constant("uniform-cheap"))
    assert uniform[SHARE] == 1.0
    assert uniform[GAIN] == 0.0


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        # Regret to random grows while one method is chosen.
        ([(0.99, -0.01), (0.99, -0.02)], [0, 1]),
        ([(0.99, -0.02), (1.0, -0.01), (1.0, -0.03)], [0, 0, 1]),
        # One method, but better than random: it may be right.
        ([(1.0, 0.02), (1.0, 0.01)], [0, 0]),
        # Worse and worse, but not by one method.
        ([(0.6, -0.01), (0.6, -0.02)], [0, 0]),
    ],
)
def test_the_alarm_is_given_for_one_method_with_growing_regret(tmp_path, caplog, seen, expected) -> None:
    """An agent that has stopped to explore does not tell; its curve of rewards looks calm."""
    with Board(tmp_path) as board, caplog.at_level(logging.WARNING, logger="rlmix"):
        alarm = CollapseAlarm(board)
        given = [alarm(step, {SHARE: share, GAIN: gain}) for step, (share, gain) in enumerate(seen)]
    assert given == [bool(one) for one in expected]
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.value for event in events.Scalars("alarm/collapse")] == expected
    assert len(caplog.records) == sum(expected)
    if any(expected):
        assert "chooses one method in" in caplog.text
        assert "behind uniform random mixing" in caplog.text
