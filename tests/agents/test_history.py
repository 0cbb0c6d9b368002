"""What the folder of a training tells."""

from __future__ import annotations

import pytest

from rlmix.agents.history import names_of, read_training
from rlmix.errors import CheckpointError, PolicyError
from rlmix.monitor.board import Board

GAIN = "eval/accuracy_to_uniform"


def test_curve_holds_every_evaluation_in_the_order_of_decisions(training_folder, tmp_path):
    gains = [place / 1000 for place in range(12)]
    training = read_training(training_folder(tmp_path, gains=gains))
    assert [step for step, _ in training.curve] == list(range(32, 32 * 13, 32))
    assert [value for _, value in training.curve] == pytest.approx(gains)
    assert 0 < training.hours < 1


def test_sessions_of_an_interrupted_training_are_one_curve(training_folder, tmp_path):
    """A resumed run writes another event file, and measures again what the lost wave had measured."""
    training_folder(tmp_path, gains=(0.0, 0.01))
    with Board(tmp_path, start=64) as board:
        board.scalars(64, {GAIN: 0.01})
        board.scalars(96, {GAIN: 0.02})
    curve = read_training(tmp_path).curve
    assert curve == tuple(zip((32, 64, 96), (0.0, pytest.approx(0.01), pytest.approx(0.02)), strict=True))


def test_settings_train_such_a_policy_again_with_another_seed(training_folder, tmp_path):
    training = read_training(training_folder(tmp_path, seed=3, actors=8))
    assert training.seed == 3
    assert training.settings == {"catalogue": "cheap", "actors": 8, "timesteps": 96}


def test_trainings_are_called_by_their_seeds_unless_two_have_the_same(training_folder, tmp_path):
    """Two curves of one name cannot be told apart."""
    first, second, third = (
        read_training(training_folder(tmp_path / name, seed=seed)) for name, seed in (("a", 0), ("b", 1), ("c", 1))
    )
    assert names_of([first, second]) == ["seed 0", "seed 1"]
    assert names_of([first, second, third]) == ["a", "b", "c"]


def test_folder_without_events_evaluations_or_policy_is_an_error(training_folder, tmp_path):
    """An empty figure would look like an agent that learned nothing."""
    training_folder(tmp_path / "whole")
    (tmp_path / "whole" / "policy").rename(tmp_path / "policy")
    with pytest.raises(CheckpointError, match="has no TensorBoard event file"):
        read_training(tmp_path)
    with Board(tmp_path) as board:
        board.scalars(1, {"train/loss": 1.0})
    with pytest.raises(CheckpointError, match=f"have no `{GAIN}`"):
        read_training(tmp_path)
    with pytest.raises(PolicyError, match="cannot be read"):
        read_training(tmp_path / "whole")
