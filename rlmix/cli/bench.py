"""`rlmix bench`: what this machine reaches."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table as Grid

from rlmix.cli.progress import THREADS, counting_bar, torch_threads

# Data, model, image side and learning rate of each kind of training.
_KINDS = (
    ("digits", "mlp", None, 0.1),
    ("shapes", "convnet", 16, 0.1),
    ("shapes", "lenet", 16, 0.05),
    ("shapes", "resnet8", 32, 0.1),
)
_HORIZON, _BATCH, _EXAMPLES = 8, 32, 400

EXAMPLES = """
Examples:

- `rlmix bench env`

- `rlmix bench env --slots 64 --steps 120 --entries none,uniform --device cuda`
"""

app = typer.Typer(help="Measure what this machine reaches.")


@app.callback()
def _group() -> None:
    """Keep `env` a command of its own."""


@app.command(epilog=EXAMPLES)
def env(
    slots: Annotated[int, typer.Option(help="Classifiers that are trained side by side.", min=1)] = 16,
    steps: Annotated[int, typer.Option(help="Steps of each training, a multiple of 8.", min=8)] = 24,
    entries: Annotated[str, typer.Option(help="Entries of the catalogue v0, joined by commas.")] = "none,cutmix-1,rmix",
    models: Annotated[
        str | None, typer.Option(help="mlp, convnet, lenet or resnet8, joined by commas; all of them if left out.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help=THREADS, min=1)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
) -> None:
    """Train each kind of classifier in a pool, and print how many steps of SGD a second it makes over all of them.

    Mixing, observations and the final score are included. Multiplied by nothing: 1,000 means that 10 classifiers make
    100 steps each in a second. A training of an agent with 6,000 classifiers of 240 steps then takes 24 minutes.
    """
    from rlmix.envs.instances import Instance, InstanceSet
    from rlmix.envs.pool import Pool
    from rlmix.errors import ConfigError, nearest
    from rlmix.policy.codec import catalogue
    from rlmix.training.loop import choose_device

    actions, names = catalogue("v0"), [name.strip() for name in entries.split(",") if name.strip()]
    wanted = [kind[1] for kind in _KINDS] if models is None else [name.strip() for name in models.split(",")]
    for name in wanted:
        if name not in [kind[1] for kind in _KINDS]:
            raise ConfigError(f"there is no model `{name}` here. {nearest(name, [kind[1] for kind in _KINDS])}")
    for name in names:
        actions.index(name)
    kinds = [kind for kind in _KINDS if kind[1] in wanted]
    where, rows = choose_device(device), list[dict[str, Any]]()
    with torch_threads(threads), counting_bar(Console(stderr=True, quiet=as_json)) as count:
        count(0, len(kinds) * len(names))
        for data, model, side, rate in kinds:
            instances = tuple(
                Instance(
                    id=str(number), data=data, seed=number, train_size=_EXAMPLES, noise=0.1, model=model,
                    batch_size=_BATCH, total_steps=steps, learning_rate=rate, side=side,
                )
                for number in range(slots)
            )  # fmt: skip
            chosen = InstanceSet(model, instances, _HORIZON)
            pool = Pool(chosen, seeds=[0], catalogue=actions, reward=None, masks=False, device=where)
            # What is done once, such as reading the data, is not what a training waits for.
            _trained(pool, instances[:1], actions.index(names[0]))
            for name in names:
                seconds = _trained(pool, instances, actions.index(name))
                rows.append(
                    {
                        "model": model,
                        "data": data,
                        "side": side or 8,
                        "slots": slots,
                        "entry": name,
                        "steps_per_second": slots * steps / seconds,
                    }
                )
                count(len(rows), len(kinds) * len(names))
    if as_json:
        typer.echo(json.dumps({"device": str(where), "threads": threads, "steps": steps, "rows": rows}, indent=2))
        return
    grid = Grid("model", "images", "classifiers", *names)
    for data, model, side, _ in kinds:
        found = [f"{row['steps_per_second']:,.0f}" for row in rows if row["model"] == model]
        grid.add_row(model, f"{data} {side or 8}x{side or 8}", str(slots), *found)
    console = Console(soft_wrap=True)
    console.print(grid)
    console.print(f"Steps of SGD a second over all classifiers, on {where}, {threads} thread(s), batches of {_BATCH}.")


def _trained(pool: Any, instances: Any, entry: int) -> float:
    """Return the seconds that a training of these instances takes, each mixed by one entry."""
    start = time.perf_counter()
    pool.begin(instances, range(len(instances)))
    done = False
    while not done:
        _, _, done, info = pool.step([entry] * len(instances))
    float(info["score"].sum())
    return time.perf_counter() - start
