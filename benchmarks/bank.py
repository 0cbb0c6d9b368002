"""An R-Mix training step with the saliency bank beside a CutMix step, and beside the second pass that it spares."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import Candidate, Case, Goal
from rlmix import MixController
from rlmix.saliency.bank import SaliencyBank
from rlmix.training.models.registry import build

CLASSES, SIDE, EXAMPLES = 100, 32, 1024
CUTMIX, BANK, WATCHED, SECOND = "CutMix", "R-Mix, bank", "CutMix, bank refreshed", "R-Mix, second pass"
# Model, batch size, rounds, and what a step with the bank may take of a CutMix step.
SIZES = (("cnn", 32, 40, None), ("resnet18", 32, 12, 1.10))


class Step:
    """One training step, with a model, an optimizer and a controller of its own."""

    def __init__(self, name: str, batch: int, method: str, bank: SaliencyBank | None) -> None:
        generator = torch.Generator().manual_seed(3)
        self.images = torch.rand(batch, 3, SIDE, SIDE, generator=generator)
        self.labels = torch.randint(CLASSES, (batch,), generator=generator)
        self.model: nn.Module = build(name, channels=3, height=SIDE, width=SIDE, num_classes=CLASSES)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.mixer = MixController(method, num_classes=CLASSES, total_steps=10_000, seed=0, saliency=bank)
        self.batch, self.taken = batch, 0

    def __call__(self, _: object = None) -> Tensor:
        """Mix, go forward and back, and change the weights."""
        first = self.taken * self.batch % EXAMPLES
        self.taken += 1
        images, targets = self.mixer(
            self.images, self.labels, model=self.model, ids=torch.arange(first, first + self.batch)
        )
        loss = F.cross_entropy(self.model(images), targets)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()


def cases() -> list[Callable[[], Case]]:
    """Return what builds a case, for each model."""
    return [partial(_case, *size) for size in SIZES]


def _case(name: str, batch: int, rounds: int, limit: float | None) -> Case:
    bank, watched = (SaliencyBank(EXAMPLES) for _ in range(2))
    steps = {
        CUTMIX: Step(name, batch, "cutmix", None),
        WATCHED: Step(name, batch, "cutmix", watched),
        BANK: Step(name, batch, "rmix", bank),
        SECOND: Step(name, batch, "rmix", None),
    }

    def check() -> None:
        plain, kept = steps[CUTMIX](), steps[WATCHED]()
        assert torch.equal(plain, kept), "the bank must not change the training"
        steps[BANK]()
        assert bank.known == watched.known == batch / EXAMPLES

    text = f"R-Mix step with the bank: at most {limit} times a CutMix step"
    return Case(
        group="bank",
        name=f"training step, {name}, B = {batch}, {SIDE} x {SIDE}",
        candidates=tuple(Candidate(name=kind, run=step) for kind, step in steps.items()),
        rounds=rounds,
        goals=() if limit is None else (Goal(candidate=BANK, baseline=CUTMIX, limit=limit, text=text),),
        check=check,
        notes=(
            "Mixing, forward, backward and SGD. With the bank the maps are read by index, and refreshed from the "
            "gradient of the mixed images that the same backward pass gives; without it R-Mix runs the model forward "
            "and backward once more, as the released code does. The ResNet-18 has the stem for small images."
        ),
    )
