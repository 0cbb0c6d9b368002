"""The training loop."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlmix._files import load_tree
from rlmix.errors import CheckpointError, ConfigError, OutputError, PolicyError, UnknownNameError
from rlmix.policy import artifact
from rlmix.policy.artifact import LearnedPolicy
from rlmix.policy.codec import catalogue
from rlmix.policy.network import PolicyNetwork
from rlmix.policy.signals import names
from rlmix.training.config import TrainConfig, load_config
from rlmix.training.loop import CHECKPOINT, CONFIG, RESULT, Progress, evaluate, train
from rlmix.training.models.registry import build

QUICK = TrainConfig(model="mlp", limit=200, epochs=4, batch_size=32, device="cpu", seed=3)
# 180 of the 200 images train: 5 steps an epoch.
STEPS = 20


def policy(folder: Path) -> Path:
    """Write a policy with random weights, which therefore answers to what it sees."""
    entries = catalogue("v0")
    read = names(entries)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(len(entries), len(read), generator=generator) * 2
    network = PolicyNetwork(actor=((weight, torch.zeros(len(entries))),), critic=None)
    low, high = torch.full((len(read),), -2.0), torch.full((len(read),), 2.0)
    learned = LearnedPolicy(
        network=network, observation_names=read, low=low, high=high, catalogue=entries, horizon=4, card={}
    )  # fmt: skip
    artifact.save(folder, learned)
    return folder


def stop_at(step: int) -> Any:
    def hook(progress: Progress) -> None:
        if progress.step >= step:
            raise KeyboardInterrupt

    return hook


def comparable(result: dict[str, Any]) -> dict[str, Any]:
    """Return what two runs of one training must agree on."""
    return {name: value for name, value in result.items() if name not in ("seconds", "date", "command")}


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("every", "stop"), [(0, 7), (3, 16), (3, 1)])
def test_a_stopped_training_goes_on_to_the_same_bits(learned: bool, every: int, stop: int, tmp_path: Path) -> None:
    """A resumed run that drifts is another experiment; only the last checkpoint is known to it."""
    given = {"policy": str(policy(tmp_path / "policy"))} if learned else {"method": "uniform"}
    config = dataclasses.replace(QUICK, checkpoint_every=every, **given)
    whole = train(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", hook=stop_at(stop))
    assert load_tree(tmp_path / "parts" / CHECKPOINT)["rest"]["step"] == {7: 5, 16: 15, 1: 0}[stop]
    assert not (tmp_path / "parts" / RESULT).exists()
    parts = train(config, tmp_path / "parts", resume=True)
    assert comparable(parts) == comparable(whole)
    trees = [load_tree(tmp_path / folder / CHECKPOINT) for folder in ("whole", "parts")]
    for tree in trees:
        del tree["rest"]["seconds"]
    assert equal(*trees)
    # Going on after the end measures nothing new.
    assert comparable(train(config, tmp_path / "parts", resume=True)) == comparable(whole)


def test_a_stopped_training_with_a_bank_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Mixing depends on the remembered maps, so a checkpoint without them would lead elsewhere."""
    config = dataclasses.replace(QUICK, method="rmix", saliency="bank", refresh_every=3, checkpoint_every=3)
    whole = train(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", hook=stop_at(16))
    assert comparable(train(config, tmp_path / "parts", resume=True)) == comparable(whole)
    trees = [load_tree(tmp_path / folder / CHECKPOINT) for folder in ("whole", "parts")]
    for tree in trees:
        del tree["rest"]["seconds"]
    assert equal(*trees)
    maps = trees[0]["rest"]["mixer"]["bank"]["maps"]
    assert maps.shape == (180, 8, 8)
    # 5 steps of 32 leave 20 images out of each epoch; the chance to be left out of all four is 1 in 6561.
    assert float(maps.flatten(1).amax(1).gt(0).float().mean()) > 0.98


@pytest.mark.parametrize("saliency", ["bank", "fine_grained"])
def test_photographs_are_trained_with_every_source_of_saliency(saliency: Any, tmp_path: Path) -> None:
    """Mirrored and shifted, normalised inside the network, so that detectors see pictures."""
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "test"):
        for name in ("cats", "dogs"):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            for number in range(8):
                pixels = torch.randint(256, (16, 16, 3), generator=generator, dtype=torch.uint8).numpy()
                Image.fromarray(pixels).save(tmp_path / "pets" / part / name / f"{number}.png")
    config = dataclasses.replace(
        QUICK, data=str(tmp_path / "pets"), image_size=16, method="rmix", saliency=saliency, batch_size=8, epochs=2
    )
    result = train(config, tmp_path / "run")
    assert math.isfinite(result["metrics"]["test_nll"])
    bank = load_tree(tmp_path / "run" / CHECKPOINT)["rest"]["mixer"]["bank"]
    assert (bank is not None) is (saliency == "bank")


def test_it_learns(tmp_path: Path) -> None:
    """A loop that runs but does not learn passes every other test; chance is 10 %."""
    result = train(dataclasses.replace(QUICK, method="none", limit=None, epochs=6, lr=0.2), tmp_path)
    assert result["metrics"]["test_accuracy"] > 0.9
    assert result["history"][0]["test_nll"] > result["history"][-1]["test_nll"]


def test_the_result_says_everything(tmp_path: Path) -> None:
    """Numbers without their seed, versions and command cannot be made again."""
    result = train(dataclasses.replace(QUICK, method="mixup", params={"alpha": 0.2}), tmp_path, command="rlmix train")
    written = json.loads((tmp_path / RESULT).read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(result))
    assert written["command"] == "rlmix train"
    assert written["seed"] == 3
    assert written["device"] == "cpu"
    assert written["versions"]["torch"]
    assert written["steps"] == STEPS
    assert written["examples"] == {"train": 180, "validation": 20, "test": 200}
    assert [row["step"] for row in written["history"]] == [5, 10, 15, 20]
    assert written["decisions"][0]["decision"]["params"] == {"alpha": 0.2}
    assert load_config(tmp_path / CONFIG, TrainConfig) == TrainConfig(**written["config"])


def test_tensorboard_shows_the_training_and_the_policy(tmp_path: Path) -> None:
    """What a policy did, and how sure it was, is what one looks for when a run went badly."""
    config = dataclasses.replace(QUICK, policy=str(policy(tmp_path / "policy")))
    result = train(config, tmp_path / "run")
    assert [taken["step"] for taken in result["decisions"]] == [0, 5, 10, 15]
    accumulator = EventAccumulator(str(tmp_path / "run"))
    accumulator.Reload()
    tags = accumulator.Tags()
    assert {
        "train/loss", "train/accuracy", "train/lr", "test/accuracy", "test/nll", "validation/accuracy",
        "policy/probability/none", "policy/probability/mixup", "policy/entry/cutmix-1", "final/test_accuracy",
    } <= set(tags["scalars"])  # fmt: skip
    assert {"mixed", "policy/probabilities"} <= set(tags["images"])
    shares = [
        [event.value for event in accumulator.Scalars(f"policy/probability/{method}")]
        for method in catalogue("v0").methods
    ]
    assert [sum(column) for column in zip(*shares, strict=True)] == pytest.approx([1.0] * 4, abs=1e-5)
    rates = accumulator.Scalars("train/lr")
    expected = [0.1 * 0.5 * (1 + math.cos(math.pi * (event.step - 1) / STEPS)) for event in rates]
    assert [event.value for event in rates] == pytest.approx(expected, abs=1e-7)


def test_a_resumed_run_leaves_one_line_for_each_step(tmp_path: Path) -> None:
    """Curves that run back and forth cannot be read."""
    with pytest.raises(KeyboardInterrupt):
        train(QUICK, tmp_path, hook=stop_at(8))
    train(QUICK, tmp_path, resume=True)
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    assert [event.step for event in accumulator.Scalars("train/loss")] == list(range(1, STEPS + 1))
    assert [event.step for event in accumulator.Scalars("test/accuracy")] == [5, 10, 15, 20]


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    """The same seed gives the same run whatever the global state; another seed another run."""
    first = train(QUICK, tmp_path / "1")
    state = torch.get_rng_state()
    torch.manual_seed(99)
    again = train(QUICK, tmp_path / "2")
    torch.set_rng_state(state)
    other = train(dataclasses.replace(QUICK, seed=4), tmp_path / "3")
    assert comparable(first) == comparable(again)
    assert first["metrics"] != other["metrics"]


def test_wrong_labels_are_learned_and_not_tested(tmp_path: Path) -> None:
    """Noise that does nothing, or that falls on the test images too, would compare methods on another problem."""
    config = dataclasses.replace(QUICK, method="none", limit=400, validation=0.5, epochs=12, lr=0.2)
    clean, noisy = (
        train(dataclasses.replace(config, noise=noise), tmp_path / str(noise))["metrics"] for noise in (0.0, 0.6)
    )
    assert noisy["test_accuracy"] < clean["test_accuracy"]
    # Of the held-out labels 60 % are wrong, which nobody can foresee.
    assert noisy["validation_accuracy"] < 0.5 < clean["validation_accuracy"]
    with pytest.raises(CheckpointError, match="`noise` was 0.6, now 0.5"):
        train(dataclasses.replace(config, noise=0.5), tmp_path / "0.6", resume=True)


def test_a_mixture_is_written_as_json_writes_a_decision(tmp_path: Path) -> None:
    """A file must be able to say what a catalogue's entry says, and the run's own file to be read again."""
    mixture = catalogue("cheap").decisions[-1]
    document = mixture.to_json()
    config = dataclasses.replace(QUICK, method=document["method"], params=document["params"], epochs=1)
    result = train(config, tmp_path)
    assert [taken["decision"] for taken in result["decisions"]] == [document]
    assert load_config(tmp_path / CONFIG, TrainConfig) == config


def test_photographs_are_augmented_and_standardized(tmp_path: Path) -> None:
    """The way of a folder of photographs, through a ResNet with BatchNorm, with saliency."""
    for kind, colour in (("sea", (0, 0, 200)), ("wood", (0, 160, 0))):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (12, 12), colour).save(tmp_path / "data" / kind / f"{number}.png")
    config = TrainConfig(
        data=str(tmp_path / "data"), image_size=8, model="resnet18", method="grafting", epochs=2, batch_size=8,
        validation=0.0, device="cpu",
    )  # fmt: skip
    result = train(config, tmp_path / "run")
    assert result["examples"] == {"train": 16, "validation": 0, "test": 4}
    assert "validation_accuracy" not in result["metrics"]
    state = load_tree(tmp_path / "run" / CHECKPOINT)["model"]
    torch.testing.assert_close(state["0.mean"].flatten()[0], torch.tensor(0.0))
    assert int(state["1.bn1.num_batches_tracked"]) == 4


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    """A forgotten --out must not cost yesterday's run."""
    train(QUICK, tmp_path)
    before = (tmp_path / RESULT).read_bytes()
    with pytest.raises(OutputError, match=r"already holds a run. Go on with it by --resume"):
        train(QUICK, tmp_path)
    assert (tmp_path / RESULT).read_bytes() == before


def test_another_training_is_not_gone_on_with(tmp_path: Path) -> None:
    """The message says what differs; what does not change the course may differ."""
    with pytest.raises(CheckpointError, match="holds no checkpoint to resume"):
        train(QUICK, tmp_path, resume=True)
    train(QUICK, tmp_path)
    with pytest.raises(CheckpointError, match=r"`lr` was 0.1, now 0.2"):
        train(dataclasses.replace(QUICK, lr=0.2), tmp_path, resume=True)
    train(dataclasses.replace(QUICK, checkpoint_every=2, device="auto"), tmp_path, resume=True)


def test_a_policy_of_other_weights_is_another_training(tmp_path: Path) -> None:
    """The folder's name says nothing about what it holds; where it lies does not matter."""
    folder = policy(tmp_path / "policy")
    train(dataclasses.replace(QUICK, policy=str(folder)), tmp_path / "run")
    moved = folder.rename(tmp_path / "moved")
    train(dataclasses.replace(QUICK, policy=str(moved)), tmp_path / "run", resume=True)
    learned = artifact.load(moved)
    (weight, bias), = learned.network.actor  # fmt: skip
    network = PolicyNetwork(actor=((weight + 1, bias),), critic=None)
    artifact.save(moved, dataclasses.replace(learned, network=network))
    with pytest.raises(CheckpointError, match="`policy` was"):
        train(dataclasses.replace(QUICK, policy=str(moved)), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "mpl"}, UnknownNameError, "Did you mean `mlp`"),
        ({"method": "cutmx"}, UnknownNameError, "Did you mean `cutmix`"),
        ({"method": "mixup", "params": {"alfa": 1}}, UnknownNameError, "Did you mean `alpha`"),
        ({"data": "digit"}, UnknownNameError, "Did you mean `digits`"),
        ({"policy": "/nowhere/policy"}, PolicyError, "cannot be read"),
        ({"validation": 0.999}, ConfigError, "leaves none of the 200"),
    ],
)
def test_what_cannot_be_trained_is_told_before_anything_is_written(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    """A folder with half a run would refuse the corrected command."""
    with pytest.raises(error, match=message):
        train(dataclasses.replace(QUICK, **changes), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_gpu_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own message is about a driver."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch finds no GPU"):
        train(dataclasses.replace(QUICK, device="cuda"), tmp_path)


@pytest.mark.gpu
def test_it_trains_on_a_gpu(tmp_path: Path) -> None:
    """Everything must move to the device, also when a run goes on."""
    config = dataclasses.replace(QUICK, device="cuda", policy=str(policy(tmp_path / "policy")))
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", hook=stop_at(8))
    assert train(config, tmp_path / "run", resume=True)["device"] == "cuda"


def test_a_diverged_training_is_written_as_json(tmp_path: Path) -> None:
    """JSON has no word for NaN; the result must load everywhere."""
    train(dataclasses.replace(QUICK, method="none", lr=1e18), tmp_path)
    written = json.loads((tmp_path / RESULT).read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert written["metrics"]["train_loss"] is None


def test_evaluation_puts_every_mode_back() -> None:
    """A frozen BatchNorm layer would otherwise begin to move."""
    model = build("resnet18", channels=1, height=8, width=8, num_classes=3)
    model.train()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    images, labels = torch.rand(600, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(600).long()
    accuracy, nll = evaluate(model, images, labels)
    assert [module.training for module in model.modules()] == modes
    model.eval()
    with torch.no_grad():
        logits = model(images)
    assert accuracy == pytest.approx(float((logits.argmax(1) == 0).float().mean()))
    assert nll == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-4)
