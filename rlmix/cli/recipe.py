"""`rlmix agent recipe`: a policy and fixed methods in whole, ordinary trainings."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from rlmix.cli.progress import INTERRUPTED, PROCESSES, THREADS, counting_bar, torch_threads
from rlmix.errors import ConfigError

EXAMPLES = """
Examples:

- `rlmix agent recipe --policy runs/agent/policy --config configs/recipes/cifar100-fifth.yaml --data-dir data --out
  runs/fifth --processes 2` takes hours

- `rlmix agent recipe --resume --out runs/fifth --processes 2` goes on after an interruption

- `rlmix agent recipe --resume --out runs/fifth --set "seeds=[0, 1, 2, 3, 4]"` adds two seeds
"""


def recipe(
    out: Annotated[Path, typer.Option(help="Folder of the study.")],
    config: Annotated[
        Path | None, typer.Option(help="YAML file: what the trainings have in common, methods, noises, seeds.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder of a learned policy, or default. Repeatable: one for each seed. Left out, the methods alone "
            "are trained; a policy can be added later with --resume."
        ),
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change one value: key=value, training.KEY=value. Repeatable.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where data sets lie; else $RLMIX_DATA, else ./data.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the trainings in --out.")] = False,
    processes: Annotated[int, typer.Option(help=PROCESSES, min=1)] = 1,
    threads: Annotated[int, typer.Option(help=f"{THREADS} With --processes 1.", min=1)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
) -> None:
    """Compare a policy with fixed methods in whole, ordinary trainings, with several shares of wrong labels.

    Each is a training as `rlmix train` runs it. What is finished is kept in runs.csv, what was interrupted goes on from
    its checkpoint; at the end stands a table of accuracies and paired differences.
    """
    from rlmix.agents.recipe import CONFIG, RecipeStudy, run_study
    from rlmix.training.config import load_config

    own = out / CONFIG
    if config is None and not (resume and own.is_file()):
        raise ConfigError(f"there is no `{own}` to go on with. Give --config FILE, such as those in configs/recipes.")
    given = {
        "policies": policy, "training.data_dir": None if data_dir is None else str(data_dir), "training.device": device,
    }  # fmt: skip
    # JSON, so that a folder called 123 stays a text.
    flags = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    study = load_config(config or own, RecipeStudy, [*(changes or []), *flags])
    console = Console(stderr=True, soft_wrap=True, quiet=as_json)
    try:
        with torch_threads(threads), counting_bar(console) as count:
            result = run_study(study, out=out, resume=resume, processes=processes, progress=count)
    except KeyboardInterrupt:
        again = shlex.join(["rlmix", "agent", "recipe", "--resume", "--out", str(out), "--processes", str(processes)])
        told = f"Everything up to the last checkpoints is kept. To go on: [bold]{escape(again)}[/]"
        Console(stderr=True, soft_wrap=True).print(f"\nStopped. {told}", highlight=False)
        raise typer.Exit(INTERRUPTED) from None
    typer.echo(json.dumps(result.to_json(), indent=2) if as_json else result.text())
