"""`rlmix train`: one training of one classifier."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from rlmix.cli.progress import INTERRUPTED
from rlmix.training.config import TrainConfig, load_config

if TYPE_CHECKING:
    from rlmix.training.loop import Hook, Progress

# Of a decision in a progress line; a mixture of many methods is longer.
_WIDTH = 32

EXAMPLES = """
Examples:

- `rlmix train --data digits --method cutmix`

- `rlmix train --data digits --model mlp --policy runs/demo/agent/policy --out runs/digits`

- `rlmix train --data cifar100 --data-dir data --model resnet18 --method mixup --param alpha=0.2 --epochs 100`

- `rlmix train --data cifar100 --data-dir data --model resnet18 --method rmix --saliency bank`

- `rlmix train --config configs/trainings/digits.yaml --set lr=0.05 --seed 1 --json`

- `rlmix train --resume --out runs/digits`
"""


def _key(name: str, text: str) -> Any:
    """Return the option for one key of the configuration; its default is told, and is None until it is given."""
    return typer.Option(help=text, show_default=str(getattr(TrainConfig(), name)))


def train(
    data: Annotated[
        str | None,
        _key("data", "A data set (digits, shapes, letters, fashion-mnist, cifar10, cifar100) or a folder of images."),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where data sets lie; else $RLMIX_DATA, else ./data.")] = None,
    image_size: Annotated[int | None, _key("image_size", "Side to which a folder's images are brought.")] = None,
    model: Annotated[
        str | None,
        _key(
            "model",
            "mlp, convnet, convnet-batchnorm, lenet, cnn, resnet8, resnet18, resnet34, resnet50, preactresnet18 or "
            "preactresnet18-narrow.",
        ),
    ] = None,
    method: Annotated[str | None, _key("method", "One mix method for the whole training.")] = None,
    param: Annotated[list[str] | None, typer.Option(help="A parameter of the method: key=value. Repeatable.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Folder of a learned policy, instead of a method.")] = None,
    saliency: Annotated[
        str | None, _key("saliency", "Where methods with saliency get their maps: gradient, bank or fine_grained.")
    ] = None,
    epochs: Annotated[int | None, _key("epochs", "Passes over the training images.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use at most this many training and test images.")] = None,
    noise: Annotated[float | None, _key("noise", "Share of wrong labels, for experiments; test labels stay.")] = None,
    batch_size: Annotated[int | None, _key("batch_size", "Images in a step.")] = None,
    lr: Annotated[float | None, _key("lr", "Step size at the beginning.")] = None,
    seed: Annotated[int | None, _key("seed", "Seed of everything.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    config: Annotated[Path | None, typer.Option(help="YAML file with the configuration.")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="Change one value: key=value. Repeatable.")] = None,
    device: Annotated[str | None, _key("device", "auto, cpu or cuda.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
) -> None:  # fmt: skip
    """Train a classifier with a learned policy or with one mix method.

    A plain PyTorch loop on one device: SGD with a cosine schedule, checkpoints, TensorBoard, and `result.json`.
    """
    from rlmix.monitor.provenance import command
    from rlmix.training import loop

    flags = {
        "data": data, "data_dir": data_dir, "image_size": image_size, "model": model, "saliency": saliency,
        "epochs": epochs, "limit": limit, "noise": noise, "batch_size": batch_size, "lr": lr, "seed": seed,
        "device": device,
    }  # fmt: skip
    overrides = [*(changes or []), *_mixing(method, param or [], policy), *_assignments(flags)]
    settings = load_config(_base(config, out, resume), TrainConfig, overrides)
    folder = out if out is not None else _default_folder(settings)
    console = Console(stderr=True, quiet=as_json)
    console.print(f"Training in [bold]{escape(str(folder))}[/]. To watch: {shlex.join(_watch(folder))}", soft_wrap=True)
    try:
        with _shown(console) as hook:
            result = loop.train(settings, folder, resume=resume, command=command(), hook=hook)
    except KeyboardInterrupt:
        _say_how_to_go_on(folder, kept=(folder / loop.CHECKPOINT).exists())
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps(loop.finite(result), indent=2))
    else:
        _print(result, folder)


def _base(config: Path | None, out: Path | None, resume: bool) -> Path | None:
    """Return the file that the configuration starts from: that of the run itself, if it goes on."""
    from rlmix.training.loop import CONFIG

    if resume and config is None and out is not None and (out / CONFIG).is_file():
        return out / CONFIG
    return config


def _mixing(method: str | None, params: Sequence[str], policy: Path | None) -> list[str]:
    """Return the overrides that say how images are mixed; what a file says of the other way is dropped."""
    from rlmix.errors import ConfigError

    if method is not None and policy is not None:
        raise ConfigError(f"--method {method} and --policy {policy} exclude each other. Give one of them.")
    chosen = _assignments({"method": method, "policy": policy})
    if method is not None:
        chosen.append("policy=null")
    if chosen:
        chosen.append("params={}")
    return [*chosen, *(f"params.{param}" for param in params)]


def _assignments(flags: Mapping[str, str | float | Path | None]) -> list[str]:
    """Return the flags that were given as `key=value`; JSON, so that a folder called 123 stays a text."""
    given = {key: str(value) if isinstance(value, Path) else value for key, value in flags.items() if value is not None}
    return [f"{key}={json.dumps(value)}" for key, value in given.items()]


def _default_folder(settings: TrainConfig) -> Path:
    mixing = settings.method if settings.policy is None else "policy"
    return Path("runs") / f"{Path(settings.data).name}-{settings.model}-{mixing}-seed{settings.seed}"


def _watch(folder: Path) -> list[str]:
    return ["tensorboard", "--logdir", str(folder)]


@contextmanager
def _shown(console: Console) -> Iterator[Hook]:
    """Give a hook that shows how far the training is: a bar on a terminal, elsewhere a line for each epoch."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=None)
        told = 0

        def hook(progress: Progress) -> None:
            nonlocal told
            bar.update(task, completed=progress.step, total=progress.total_steps, description=_words(progress))
            if not console.is_terminal and progress.epoch > told:
                told = progress.epoch
                console.print(f"epoch {progress.epoch}/{progress.epochs}  {_words(progress)}", highlight=False)

        yield hook


def _words(progress: Progress) -> str:
    accuracy = f"  test accuracy {progress.accuracy:.1%}" if progress.epoch else ""
    decision = progress.decision if len(progress.decision) <= _WIDTH else f"{progress.decision[: _WIDTH - 1]}…"
    return f"{escape(decision)}  loss {progress.loss:.3f}{accuracy}"


def _say_how_to_go_on(folder: Path, *, kept: bool) -> None:
    again = shlex.join(["rlmix", "train", "--resume", "--out", str(folder)])
    told = f"The last checkpoint is kept. To go on: [bold]{escape(again)}[/]" if kept else "Nothing was kept yet."
    Console(stderr=True, soft_wrap=True).print(f"\nStopped. {told}", highlight=False)


def _print(result: Mapping[str, Any], folder: Path) -> None:
    """Print what was measured and where everything lies."""
    from rlmix.training.loop import RESULT

    table = Table("part", "images", "accuracy", "nll", title="Result", title_justify="left")
    for part in ("train", "validation", "test"):
        metrics = {name: result["metrics"].get(f"{part}_{name}") for name in ("accuracy", "nll")}
        if metrics["accuracy"] is not None:
            nll = "" if metrics["nll"] is None else f"{metrics['nll']:.4f}"
            name = "train, mixed" if part == "train" else part
            table.add_row(name, str(result["examples"][part]), f"{metrics['accuracy']:.2%}", nll)
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(f"Result: {escape(str(folder / RESULT))}", highlight=False)
    console.print(f"TensorBoard: {shlex.join(_watch(folder))}", highlight=False, markup=False)
