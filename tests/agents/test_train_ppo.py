"""The whole training of an agent, on real but very short trainings of digits."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlmix._files import load_tree
from rlmix.agents.baselines.evolution import ESConfig
from rlmix.agents.ppo import PPOConfig, train_ppo
from rlmix.agents.qrdqn import QRDQNConfig
from rlmix.agents.runs import CHECKPOINT
from rlmix.cli.agent import _trainer
from rlmix.envs.instances import Family, Recipe
from rlmix.errors import CheckpointError, ConfigError, OutputError
from rlmix.policy.artifact import load
from rlmix.training.config import load_config

HORIZON, ACTORS, WAVES = 4, 8, 3


def tiny(part, count=4):
    family = Family(data="digits", total_steps={8: 1, 16: 1}, train_size=(100, 200), noise=(0.0, 0.4))
    return Recipe(name="tiny", families=(family,), horizon=HORIZON).generate(part, count)


def config(out, **changes):
    fields = {"catalogue": "cheap", "timesteps": WAVES * ACTORS * HORIZON, "actors": ACTORS, "evaluate_every": 1}
    return PPOConfig(**{**fields, "out": str(out), **changes})


def train(settings, **arguments):
    return train_ppo(settings, instances=tiny("train"), validation=tiny("validation", 2), **arguments)


def digest(folder):
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((Path(folder) / "policy").iterdir())]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished training: its folder and its policy."""
    folder = tmp_path_factory.mktemp("agent") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLMIX_CACHE", str(tmp_path_factory.mktemp("cache")))
        return folder, train(config(folder))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    """Keep the references out of the user's cache."""
    monkeypatch.setenv("RLMIX_CACHE", str(tmp_path / "cache"))


def test_policy_directory_holds_what_was_returned_and_where_it_comes_from(finished):
    """A policy without its seed, set and versions cannot be traced back."""
    folder, policy = finished
    loaded = load(folder / "policy")
    for one, other in zip(loaded.network.actor, policy.network.actor, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    assert loaded.horizon == HORIZON
    assert loaded.card["timesteps"] == WAVES * ACTORS * HORIZON
    assert loaded.card["instances"] == {"name": "tiny-train", "digest": tiny("train").digest, "count": 4}
    assert loaded.card["seed"] == 0
    assert {"rlmix", "torch", "stable-baselines3"} <= set(loaded.card["versions"])
    assert {"eval/accuracy", "eval/accuracy_to_uniform", "eval/score"} <= set(loaded.card["statistics"])
    assert str(folder) not in (folder / "policy" / "policy.json").read_text(encoding="utf-8")


def test_entries_constant_in_training_are_not_read(finished):
    """All tiny trainings have digits' classes and size; a policy that reads them has untrained weights there."""
    _, policy = finished
    assert "time/progress" in policy.observation_names
    assert not {"context/classes", "context/side"} & set(policy.observation_names)


def test_one_run_in_tensorboard_with_all_curves_and_figures(finished):
    """A second run directory for hyper-parameters doubles every list of runs; a missing tag is a blind training."""
    folder, _ = finished
    assert len(list(folder.rglob("events.out.tfevents.*"))) == 1
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    expected = {"rollout/ep_rew_mean", "train/loss", "train/value_loss", "eval/accuracy", "eval/score"}
    expected |= {"alarm/collapse"}
    expected |= {f"policy/probability/{method}/{step}" for method in ("none", "mixup", "cutmix") for step in (0, 3)}
    assert expected <= set(tags["scalars"])
    assert {"policy/probabilities", "mixed/entries"} <= set(tags["images"])
    for decision in range(HORIZON):
        tags = [f"policy/probability/{name}/{decision}" for name in ("none", "mixup", "cutmix")]
        assert sum(events.Scalars(tag)[-1].value for tag in tags) == pytest.approx(1.0, abs=1e-5)
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == [ACTORS * HORIZON * wave for wave in range(1, WAVES + 1)]
    assert {"_hparams_/session_start_info", "_hparams_/experiment"} <= set(events.summary_metadata)


@pytest.mark.parametrize("decision", [1, 3])
def test_interrupted_and_resumed_training_gives_the_same_policy_bit_for_bit(finished, tmp_path, decision):
    """The promise of `--resume`, through environment, checkpoint, policy and card, wherever the interruption fell."""
    folder, _ = finished
    settings = config(tmp_path / "run")

    def stop(progress):
        if progress.decisions == ACTORS * (HORIZON + decision):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings, progress=stop)
    assert load_tree(tmp_path / "run" / CHECKPOINT)["timesteps"] == ACTORS * HORIZON
    assert not (tmp_path / "run" / "policy").exists()
    train(settings, resume=True)
    assert digest(tmp_path / "run") == digest(folder)


def test_the_number_of_processes_changes_nothing(finished, tmp_path):
    """A policy must not tell how many cores the machine had that it was trained on."""
    train(config(tmp_path / "run", processes=2))
    assert digest(tmp_path / "run") == digest(finished[0])
    with pytest.raises(ConfigError, match="`forks` are made within one process, got 1 with 2"):
        config(tmp_path, processes=2, forks=1)


def test_another_seed_another_policy(finished, tmp_path):
    """If the seed did not reach the environment and the weights, all agent seeds would be one."""
    train(config(tmp_path / "run", seed=1, timesteps=1))
    assert digest(tmp_path / "run") != digest(finished[0])


def test_global_random_state_is_left_alone(tmp_path):
    """Training an agent in a notebook must not change the numbers of the cells that follow."""
    before = torch.get_rng_state()
    train(config(tmp_path / "run", timesteps=1))
    assert torch.equal(before, torch.get_rng_state())


def test_a_folder_with_a_run_is_not_overwritten(finished):
    """A forgotten `--out` must not cost a finished policy."""
    with pytest.raises(OutputError, match="already holds a run. Go on with it by --resume"):
        train(config(finished[0]))


def test_resuming_with_other_instances_or_settings_is_refused(finished):
    """The result would be one that no configuration describes."""
    folder, _ = finished
    with pytest.raises(CheckpointError, match=r"`entropy` was 0.01 and is now 0.02"):
        train(config(folder, entropy=0.02), resume=True)
    with pytest.raises(CheckpointError, match=r"`instances` was '[0-9a-f]+' and is now '[0-9a-f]+'"):
        train_ppo(config(folder), instances=tiny("train", 3), resume=True)


def test_a_checkpoint_of_something_else_is_refused(finished, tmp_path):
    """A classifier's checkpoint has the same file name."""
    from rlmix._files import save_tree

    (tmp_path / "run").mkdir()
    save_tree(tmp_path / "run" / CHECKPOINT, {"schema": "other", "model": {}})
    with pytest.raises(CheckpointError, match="is no checkpoint of such a training"):
        train(config(tmp_path / "run"), resume=True)


def test_configuration_is_kept_beside_the_run(finished):
    """`--resume` alone must know what the run was started with."""
    folder, _ = finished
    assert load_config(folder / "config.yaml", PPOConfig) == config(folder)


def test_shipped_configurations_are_valid(project):
    """A misspelt key in a file that the documentation names would meet every newcomer."""
    kinds = {"evolution": ESConfig, "qrdqn": QRDQNConfig}
    files = sorted((project / "configs" / "agents").glob("*.yaml"))
    assert {file.stem for file in files} > set(kinds)
    for file in files:
        kind = kinds.get(file.stem, PPOConfig)
        assert isinstance(load_config(file, kind), kind)
        assert _trainer(None, file)[0] is kind


def test_files_of_the_run_hold_no_pickle(finished):
    """What is loaded must not be able to run code."""
    folder, _ = finished
    names = {path.name.partition(".tfevents")[0] for path in folder.rglob("*") if path.is_file()}
    assert names == {"checkpoint.safetensors", "config.yaml", "events.out", "policy.json", "policy.safetensors"}
    json.loads((folder / "policy" / "policy.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ["multidiscrete", "hybrid"])
def test_policies_that_set_parameters_are_trained_resumed_and_written(tmp_path, kind):
    """The same promises for every kind of action: files, curves, validation, and the same bits after a resume."""
    settings = config(tmp_path / "run", action=kind, timesteps=2 * ACTORS * HORIZON)
    policy = train(settings)
    loaded = load(tmp_path / "run" / "policy")
    assert loaded.codec is not None
    assert (loaded.codec.kind, loaded.codec.digest) == (kind, policy.actions.digest)
    assert loaded.card["config"]["action"] == kind
    assert "eval/accuracy_to_uniform" in loaded.card["statistics"]
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    shares = [events.Scalars(f"policy/probability/{name}/0")[-1].value for name in ("none", "mixup", "cutmix")]
    assert sum(shares) == pytest.approx(1.0, abs=1e-5)

    def stop(progress):
        if progress.decisions == ACTORS * (HORIZON + 1):
            raise KeyboardInterrupt

    settings = config(tmp_path / "other", action=kind, timesteps=2 * ACTORS * HORIZON)
    with pytest.raises(KeyboardInterrupt):
        train(settings, progress=stop)
    train(settings, resume=True)
    assert digest(tmp_path / "other") == digest(tmp_path / "run")
    with pytest.raises(CheckpointError, match=f"`action` was '{kind}' and is now 'discrete'"):
        train(config(tmp_path / "other", timesteps=2 * ACTORS * HORIZON), resume=True)
