"""One training of one classifier on one device, with a learned policy or a fixed way of mixing.

Everything random is a function of the seed: initial weights, the held-out images, wrong labels, the order of an epoch,
mirroring and mixing. So a training that was interrupted goes on, from its last checkpoint, to the result it would have
had.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD

from rlmix._files import sha256_of, writable_folder, write_text
from rlmix.errors import CheckpointError, ConfigError, OutputError, PolicyError
from rlmix.loss import mixed_accuracy, soft_cross_entropy
from rlmix.monitor.board import Board
from rlmix.monitor.provenance import hardware, now, versions
from rlmix.ops import rng
from rlmix.policy.artifact import DOCUMENT, folder_of
from rlmix.policy.artifact import load as load_policy
from rlmix.policy.controller import MixController
from rlmix.policy.decision import Decision
from rlmix.saliency.bank import SaliencyBank
from rlmix.saliency.detector import Detector
from rlmix.training.augment import augmented, mirrored
from rlmix.training.batches import batches, split
from rlmix.training.checkpoint import restore, save
from rlmix.training.config import Saliency, TrainConfig
from rlmix.training.data import Arrays, load
from rlmix.training.models.registry import build, init
from rlmix.training.models.standardize import Standardize
from rlmix.types import SaliencySource

CHECKPOINT = "checkpoint.safetensors"
CONFIG = "config.yaml"
RESULT = "result.json"

# Streams under the seed. 1 and 2 are the controller's, 4, 5 and 7 those of the batches.
_WEIGHTS, _AUGMENT = 3, 6
# The course of a training does not depend on these.
_FREE = frozenset({"data_dir", "checkpoint_every", "device", "policy"})
_EVALUATION_BATCH = 512
_CURVE_POINTS = 200
_GRIDS = 4


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a training is.

    Attributes:
        step: steps taken.
        total_steps: steps in the whole training.
        epoch: epochs finished.
        epochs: epochs in the whole training.
        loss: mean loss on mixed targets of the last steps that were looked at.
        accuracy: test accuracy after the last finished epoch, in [0, 1], or NaN before there is one.
        decision: how images are mixed now.
    """

    step: int
    total_steps: int
    epoch: int
    epochs: int
    loss: float
    accuracy: float
    decision: str


Hook: TypeAlias = Callable[[Progress], None]


def train(
    config: TrainConfig, out: str | Path, *, resume: bool = False, command: str = "", hook: Hook | None = None
) -> dict[str, Any]:
    """Train a classifier, and write its checkpoint, TensorBoard events and `result.json` into `out`.

    Args:
        config: what to train, and how.
        out: folder of the run.
        resume: go on from the checkpoint in `out`.
        command: how the run was started, for the record.
        hook: called now and then with how far the training is.

    Returns:
        What `result.json` holds: metrics, the history by epoch, decisions, and what it was made with.

    Raises:
        OutputError: `out` cannot be written, or already holds a run and `resume` is not set.
        CheckpointError: there is nothing to resume, or it belongs to another training.
        DataError: the images are missing.
        PolicyError: the policy cannot be used.
        UnknownNameError: no such data set, model, method or parameter.
    """
    folder = writable_folder(out)
    _check_folder(folder, resume)
    device = choose_device(config.device)
    arrays = load(config.data, config.data_dir, image_size=config.image_size, limit=config.limit)
    run = _Run(config, arrays, device, folder)
    if resume:
        run.restore()
    else:
        write_text(folder / CONFIG, config_text(config))
        # At once, so that even a run that is stopped in its first minute can be gone on with.
        run.save()
    # What was written at the checkpoint's own step belongs to it; only later lines are written anew.
    with Board(folder, start=run.step + 1 if resume else 0) as board:
        run.train(board, hook or _silent)
        run.finish(board)
    result = run.result(command)
    write_text(folder / RESULT, json.dumps(finite(result), indent=2) + "\n")
    return result


def choose_device(name: str) -> torch.device:
    """Return the device that a configuration names.

    Raises:
        ConfigError: "cuda" where there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("`device` is cuda, but torch finds no GPU. Use --device cpu, or install torch for CUDA.")
    return torch.device(name)


def config_text(config: TrainConfig) -> str:
    """Return a configuration as YAML that `load_config` reads."""
    import yaml

    return str(yaml.safe_dump({**dataclasses.asdict(config), "params": dict(config.params)}, sort_keys=False))


def identity(config: TrainConfig) -> dict[str, Any]:
    """Return what decides the course of a training, by name: numbers and texts.

    Raises:
        PolicyError: the policy's directory cannot be read.
    """
    values = {**dataclasses.asdict(config), "params": json.dumps(dict(config.params), sort_keys=True)}
    policy = None
    if config.policy is not None:
        # The document names the digest of the policy's tensors too; where the folder lies does not matter.
        document = folder_of(config.policy) / DOCUMENT
        try:
            policy = sha256_of(document.read_bytes())
        except OSError as error:
            raise PolicyError(f"`{document}` cannot be read ({error.strerror or error}).") from error
    return {**{name: value for name, value in values.items() if name not in _FREE}, "policy": policy}


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return accuracy and mean negative log-likelihood on unmixed images; the model's modes are put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    correct = torch.zeros((), dtype=torch.float64, device=images.device)
    nll = torch.zeros((), dtype=torch.float64, device=images.device)
    for part, truth in zip(*(torch.split(whole, _EVALUATION_BATCH) for whole in (images, labels)), strict=True):
        logits = model(part).float()
        correct += (logits.argmax(1) == truth).sum()
        nll += functional.cross_entropy(logits, truth, reduction="sum").double()
    for module, training in modes:
        module.training = training
    return float(correct) / len(labels), float(nll) / len(labels)


def finite(node: Any) -> Any:
    """Return a tree with None for numbers that are not finite, which JSON has no word for."""
    if isinstance(node, dict):
        return {key: finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


class _Run:
    """A training and where it stands."""

    def __init__(self, config: TrainConfig, arrays: Arrays, device: torch.device, folder: Path) -> None:
        self.config, self.arrays, self.device, self.folder = config, arrays, device, folder
        self.policy = None if config.policy is None else load_policy(config.policy)
        self.splits = split(arrays, config.validation, config.seed, device, noise=config.noise)
        self.count = len(self.splits.train[1])
        self.batch_size = min(config.batch_size, self.count)
        self.epoch_steps = self.count // self.batch_size
        self.total_steps = self.epoch_steps * config.epochs
        self.model = self._model().to(device)
        self.optimizer = SGD(
            self.model.parameters(),
            config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,
        )
        self.mixer = self._mixer()
        self.step = 0
        # Sums of loss and mixed accuracy on the device: since the last point of the curves, and since the epoch began.
        self.sums = torch.zeros(2, 2, dtype=torch.float64, device=device)
        self.last = [math.nan, math.nan]
        self.history: list[dict[str, Any]] = []
        self.decisions: list[dict[str, Any]] = []
        self.earlier, self.began = 0.0, time.perf_counter()

    def _model(self) -> nn.Module:
        channels, height, width = self.arrays.shape
        network = build(
            self.config.model, channels=channels, height=height, width=width, num_classes=self.arrays.num_classes
        )
        init(network, rng.derive(self.config.seed, _WEIGHTS))
        return nn.Sequential(Standardize(self.splits.train[0]), network) if self.arrays.natural else network

    def _mixer(self) -> MixController:
        config = self.config
        return MixController(
            self.policy if self.policy is not None else _decision(config),
            num_classes=self.arrays.num_classes,
            total_steps=self.total_steps,
            seed=config.seed,
            num_examples=self.count,
            validation=self.splits.validation,
            saliency=self._saliency(),
            refresh_every=config.refresh_every or None,
        )

    def _saliency(self) -> SaliencySource | SaliencyBank | None:
        sources: dict[Saliency, Callable[[], SaliencySource | SaliencyBank | None]] = {
            "gradient": lambda: None,
            "bank": lambda: SaliencyBank(self.count, device=self.device),
            "fine_grained": Detector,
        }
        return sources[self.config.saliency]()

    def train(self, board: Board, hook: Hook) -> None:
        """Take all the steps that are left."""
        every = max(1, self.total_steps // _CURVE_POINTS)
        keep = self.config.checkpoint_every or self.epoch_steps
        images, labels = self.splits.train
        self.model.train()
        for step, rows in batches(self.count, self.batch_size, self.config.epochs, self.config.seed, self.step):
            there = rows.to(self.device)
            self._train_step(board, step, images[there], labels[there], rows)
            self.step = step + 1
            if self.step % every == 0 or self.step == self.total_steps:
                self._curves(board, every)
            if self.step % self.epoch_steps == 0:
                self._epoch(board)
            if self.step % every == 0 or self.step % self.epoch_steps == 0:
                hook(self.progress())
            if self.step % keep == 0 or self.step == self.total_steps:
                self.save()
                board.flush()

    def _train_step(self, board: Board, step: int, images: Tensor, labels: Tensor, ids: Tensor) -> None:
        """Take one step: what anybody's training loop would do."""
        lr = self.config.lr * 0.5 * (1.0 + math.cos(math.pi * step / self.total_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        turned = None
        if self.arrays.natural:
            key = rng.derive(self.config.seed, _AUGMENT, step)
            images, turned = augmented(images, key), mirrored(len(images), key, self.device)
        mixed, targets = self.mixer(images, labels, model=self.model, ids=ids, mirrored=turned)
        logits = self.model(mixed)
        loss = soft_cross_entropy(logits, targets).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.mixer.observe(loss=loss.detach(), lr=lr)
        self.sums += torch.stack([loss.detach(), mixed_accuracy(logits.detach(), targets)])
        self._note_decision(board, step, mixed, targets)

    def _note_decision(self, board: Board, step: int, mixed: Tensor, targets: Tensor) -> None:
        """Record a new decision, and now and then a grid of what the model sees."""
        decided = self.mixer.decisions
        if len(decided) > len(self.decisions):
            decision = decided[-1][1]
            entries = self.mixer.probabilities or {}
            taken = {"step": step, "text": decision.text, "decision": decision.to_json(), "probabilities": entries}
            self.decisions.append(taken)
            # Methods out of use are written as 0, since a curve would go on at its last value.
            unused = dict.fromkeys(self.policy.catalogue.methods if self.policy is not None else (), 0.0)
            shares = {**unused, **decision.usage()}
            board.scalars(step, {f"mix/{method}": share for method, share in shares.items()})
            board.text(step, "mix/decision", f"`{decision.text}`")
            board.scalars(step, {f"policy/entry/{name}": value for name, value in entries.items()})
            by_method = {name: values[-1] for name, values in self._probabilities().items()}
            board.scalars(step, {f"policy/probability/{name}": value for name, value in by_method.items()})
        if step % max(1, self.total_steps // _GRIDS) == 0:
            board.mixed(step, mixed.detach(), targets, self.arrays.classes)

    def _probabilities(self) -> dict[str, list[float]]:
        """Return how probable each method was at each decision of a learned policy; empty without one."""
        if self.policy is None:
            return {}
        catalogue = self.policy.catalogue
        usage = dict(zip(catalogue.names, (decision.usage() for decision in catalogue.decisions), strict=True))
        return {
            method: [
                sum(value * usage[name].get(method, 0.0) for name, value in taken["probabilities"].items())
                for taken in self.decisions
            ]
            for method in catalogue.methods
        }

    def finish(self, board: Board) -> None:
        """Write what concerns the whole training."""
        metrics = {f"final/{name}": value for name, value in self.metrics().items()}
        board.hyperparameters(_flat(self.config), metrics, step=self.total_steps)
        if self.policy is not None:
            progress = [taken["step"] / self.total_steps for taken in self.decisions]
            board.probabilities(self.total_steps, progress, self._probabilities())

    def metrics(self) -> dict[str, float]:
        """Return what was measured after the last epoch."""
        return {name: value for name, value in self.history[-1].items() if name not in ("epoch", "step")}

    def _curves(self, board: Board, every: int) -> None:
        steps = (self.step - 1) % every + 1
        self.last = (self.sums[0] / steps).tolist()
        self.sums[0] = 0.0
        lr = self.optimizer.param_groups[0]["lr"]
        board.scalars(self.step, {"train/loss": self.last[0], "train/accuracy": self.last[1], "train/lr": lr})

    def _epoch(self, board: Board) -> None:
        loss, accuracy = (self.sums[1] / self.epoch_steps).tolist()
        self.sums[1] = 0.0
        row = {
            "epoch": self.step // self.epoch_steps,
            "step": self.step,
            "train_loss": loss,
            "train_accuracy": accuracy,
        }
        held_out = {"test": self.splits.test, "validation": self.splits.validation}
        for name, part in held_out.items():
            if part is not None:
                row[f"{name}_accuracy"], row[f"{name}_nll"] = evaluate(self.model, *part)
                board.scalars(self.step, {f"{name}/{what}": row[f"{name}_{what}"] for what in ("accuracy", "nll")})
        self.history.append(row)

    def progress(self) -> Progress:
        """Return how far the training is."""
        return Progress(
            step=self.step,
            total_steps=self.total_steps,
            epoch=self.step // self.epoch_steps,
            epochs=self.config.epochs,
            loss=self.last[0],
            accuracy=self.history[-1]["test_accuracy"] if self.history else math.nan,
            decision=self.decisions[-1]["text"] if self.decisions else "",
        )

    def result(self, command: str) -> dict[str, Any]:
        """Return what `result.json` holds."""
        return {
            "metrics": self.metrics(),
            "steps": self.total_steps,
            "examples": {
                "train": self.count,
                "validation": 0 if self.splits.validation is None else len(self.splits.validation[1]),
                "test": len(self.splits.test[1]),
            },
            "decisions": self.decisions,
            "history": self.history,
            "seed": self.config.seed,
            "device": str(self.device),
            "hardware": hardware(self.device),
            "versions": versions(),
            "command": command,
            "seconds": round(self._seconds(), 3),
            "date": now(),
            "config": {**dataclasses.asdict(self.config), "params": dict(self.config.params)},
        }

    def _identity(self) -> dict[str, Any]:
        return {**identity(self.config), "examples": self.count}

    def save(self) -> None:
        """Write the checkpoint."""
        rest = {
            "step": self.step,
            "mixer": self.mixer.state_dict(),
            "sums": self.sums,
            "last": self.last,
            "history": self.history,
            "decisions": self.decisions,
            "seconds": self._seconds(),
        }
        path = self.folder / CHECKPOINT
        save(path, identity=self._identity(), model=self.model, optimizer=self.optimizer, rest=rest)

    def restore(self) -> None:
        """Go back to the checkpoint."""
        path = self.folder / CHECKPOINT
        rest = restore(path, identity=self._identity(), model=self.model, optimizer=self.optimizer)
        self.mixer.load_state_dict(rest["mixer"])
        self.step, self.last, self.sums = rest["step"], rest["last"], rest["sums"].to(self.device)
        self.history, self.decisions = rest["history"], rest["decisions"]
        self.earlier, self.began = rest["seconds"], time.perf_counter()

    def _seconds(self) -> float:
        """Return how long the training took so far, its interrupted parts up to their checkpoints included."""
        return self.earlier + time.perf_counter() - self.began


def _decision(config: TrainConfig) -> Decision:
    """Return what the whole training is mixed by; the members of a mixture are written as JSON writes a Decision."""
    return Decision.from_json({"method": config.method, "params": dict(config.params)})


def _check_folder(folder: Path, resume: bool) -> None:
    exists = (folder / CHECKPOINT).exists()
    if exists and not resume:
        raise OutputError(f"`{folder}` already holds a run. Go on with it by --resume, or give another --out.")
    if resume and not exists:
        raise CheckpointError(f"`{folder}` holds no checkpoint to resume. Leave --resume out to start a run there.")


def _flat(config: TrainConfig) -> dict[str, bool | float | str | None]:
    values = dataclasses.asdict(config)
    return {**values, "params": json.dumps(dict(config.params), sort_keys=True)}


def _silent(progress: Progress) -> None:
    """Look away."""
