"""Checkpoints of a training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD

from rlmix._files import save_tree
from rlmix.errors import CheckpointError
from rlmix.training.checkpoint import restore, save
from rlmix.training.models.registry import build, init

IDENTITY = {"model": "cnn", "lr": 0.1}


def trained(key: int, steps: int) -> tuple[nn.Module, SGD]:
    """Return a model and its optimizer after some steps."""
    model = init(build("cnn", channels=1, height=8, width=8, num_classes=3), key)
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(2, 1, 8, 8)).square().sum().backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("steps", [0, 2])
def test_a_restored_training_takes_the_same_next_step(steps: int, tmp_path: Path) -> None:
    """Lost momentum shows only in the steps that follow; before the first step there is none to lose."""
    path = tmp_path / "c.safetensors"
    model, optimizer = trained(0, steps)
    save(path, identity=IDENTITY, model=model, optimizer=optimizer, rest={"step": steps, "x": float("nan")})
    other, others = trained(1, 1)
    if steps == 0:
        others.state.clear()
    rest = restore(path, identity=IDENTITY, model=other, optimizer=others)
    assert rest["step"] == steps
    for network, descent in ((model, optimizer), (other, others)):
        descent.zero_grad()
        network(torch.ones(2, 1, 8, 8)).square().sum().backward()
        descent.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    """Going on with another learning rate would give a result that no configuration describes."""
    path = tmp_path / "c.safetensors"
    model, optimizer = trained(0, 1)
    save(path, identity=IDENTITY, model=model, optimizer=optimizer, rest={})
    with pytest.raises(CheckpointError, match=r"another training: `lr` was 0.1, now 0.2; `epochs` was None, now 3"):
        restore(path, identity={"model": "cnn", "lr": 0.2, "epochs": 3}, model=model, optimizer=optimizer)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    """Where the identity does not tell, the shapes do."""
    path = tmp_path / "c.safetensors"
    model, optimizer = trained(0, 1)
    save(path, identity=IDENTITY, model=model, optimizer=optimizer, rest={})
    other = build("mlp", channels=1, height=8, width=8, num_classes=3)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        restore(path, identity=IDENTITY, model=other, optimizer=SGD(other.parameters(), 0.1))


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    """An agent's checkpoint is a tree too."""
    path = tmp_path / "c.safetensors"
    save_tree(path, {"format": "something else"})
    model, optimizer = trained(0, 0)
    with pytest.raises(CheckpointError, match="is no checkpoint of a training"):
        restore(path, identity=IDENTITY, model=model, optimizer=optimizer)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    """Half a file must not start a training from half its weights."""
    path = tmp_path / "c.safetensors"
    model, optimizer = trained(0, 1)
    save(path, identity=IDENTITY, model=model, optimizer=optimizer, rest={})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is damaged"):
        restore(path, identity=IDENTITY, model=model, optimizer=optimizer)
