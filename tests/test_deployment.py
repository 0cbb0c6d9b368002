"""A saved policy in somebody else's training: torchvision's ResNet-18, and real CIFAR-100 images where they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from torchvision.models import resnet18

import rlmix
from rlmix.cli.main import main
from rlmix.policy.artifact import LearnedPolicy, save
from rlmix.policy.codec import catalogue
from rlmix.policy.network import Layers, PolicyNetwork
from rlmix.policy.signals import names


def policy_directory(folder: Path) -> Path:
    """Save a policy with random weights that reads every entry."""
    entries = catalogue("v0")
    observed = names(entries)
    generator = torch.Generator().manual_seed(2)

    def layers(outputs: int) -> Layers:
        first = (torch.randn(16, len(observed), generator=generator), torch.zeros(16))
        return first, (torch.randn(outputs, 16, generator=generator) * 3, torch.zeros(outputs))

    policy = LearnedPolicy(
        network=PolicyNetwork(actor=layers(len(entries)), critic=layers(1)),
        observation_names=observed,
        low=torch.full((len(observed),), -5.0),
        high=torch.full((len(observed),), 5.0),
        catalogue=entries,
        horizon=4,
        card={"purpose": "a test"},
    )
    save(folder / "policy", policy)
    return folder / "policy"


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_torchvision_network_trains_with_a_deployed_policy(
    tmp_path: Path, memory_format: torch.memory_format
) -> None:
    """BatchNorm statistics and flags must move by the training alone, saliency passes and probes leaving no trace."""
    torch.manual_seed(0)
    model = resnet18(num_classes=10).to(memory_format=memory_format)
    model.layer4.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(24, 3, 32, 32, generator=generator).contiguous(memory_format=memory_format)
    labels = torch.randint(10, (24,), generator=generator)
    mixer = rlmix.MixController.load(
        policy_directory(tmp_path), num_classes=10, total_steps=8, seed=0, num_examples=24,
        validation=(images[:16], labels[:16]),
    )  # fmt: skip
    flags = [module.training for module in model.modules()]
    for step in range(8):
        before = [value.clone() for value in model.state_dict().values()]
        rows = torch.arange(step, step + 8)
        mixed, targets = mixer(images[rows], labels[rows], model=model)
        assert all(map(torch.equal, before, model.state_dict().values()))
        assert flags == [module.training for module in model.modules()]
        assert all(parameter.grad is None for parameter in model.parameters())
        assert mixed.is_contiguous(memory_format=memory_format)
        assert torch.allclose(targets.sum(1), torch.ones(8))
        loss = functional.cross_entropy(model(mixed), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mixer.observe(loss=loss, lr=0.01)
    assert [step for step, _ in mixer.decisions] == [0, 2, 4, 6]
    assert mixer.close().steps == 8


@pytest.mark.slow
def test_real_cifar_100_images_train_with_a_deployed_policy(tmp_path: Path) -> None:
    """The whole command on real photographs: restored files, ResNet-18, a policy directory, and what it writes."""
    restore = Path(os.environ.get("RLMIX_DATA", "")) / "restore_cifar100.py"
    if not restore.is_file():
        pytest.skip("RLMIX_DATA names no folder with restore_cifar100.py: no CIFAR-100 here")
    subprocess.run([sys.executable, str(restore), "--to", str(tmp_path)], check=True, capture_output=True)
    arguments = [
        "train", "--data", "cifar100", "--data-dir", str(tmp_path), "--model", "resnet18", "--limit", "192",
        "--batch-size", "32", "--epochs", "2", "--policy", str(policy_directory(tmp_path)),
        "--out", str(tmp_path / "run"), "--seed", "0", "--json",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert len(result["decisions"]) == 4
