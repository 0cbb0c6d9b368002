"""Train a classifier in a plain PyTorch loop, mixed by a learned policy, a fixed method or a random choice.

    python examples/deploy_policy.py runs/agent/policy
    python examples/deploy_policy.py uniform --epochs 20

Only the lines that name `mixer` belong to rlmix; the rest is the loop that everybody has.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import rlmix


def digits() -> tuple[Tensor, Tensor]:
    """Return 1,797 handwritten digits: images float32 [n, 1, 8, 8] in [0, 1], labels int64 [n]."""
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return images[order], labels[order]


def network() -> nn.Module:
    """Return a small convolutional network."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def main() -> None:
    """Train and print the accuracy on images that were set aside."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy", nargs="?", default="uniform", help="a policy directory, or a method's name")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)

    images, labels = digits()
    train, validation, test = slice(0, 1000), slice(1000, 1300), slice(1300, None)
    steps, size = 1000 // 32, 32
    total = arguments.epochs * steps

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    mixer = rlmix.MixController(
        arguments.policy,
        num_classes=10,
        total_steps=total,
        seed=arguments.seed,
        num_examples=1000,
        validation=(images[validation], labels[validation]),
    )
    for epoch in range(arguments.epochs):
        for rows in torch.randperm(1000)[: steps * size].split(size):
            mixed, targets = mixer(images[train][rows], labels[train][rows], model=model)
            loss = F.cross_entropy(model(mixed), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            mixer.observe(loss=loss, lr=scheduler.get_last_lr()[0])
            scheduler.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
    mixer.close()

    with torch.inference_mode():
        accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean()
    print(f"test accuracy: {accuracy:.4f}")


if __name__ == "__main__":
    main()
