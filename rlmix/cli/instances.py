"""`rlmix instances`: what a set of training problems holds, and which mix wins where."""

from __future__ import annotations

import functools
import json
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table as Grid

from rlmix.cli.progress import INTERRUPTED, PROCESSES, THREADS, counting_bar, torch_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rlmix.envs.block import Library
    from rlmix.envs.instances import Instance, InstanceSet
    from rlmix.envs.reference import Table

# A method that wins on so large a share of a set is worth learning to choose.
_SHARE = 0.1

SHOW_EXAMPLES = """
Examples:

- `rlmix instances show digits`

- `rlmix instances show configs/instances/transfer.yaml --part heldout --json`
"""
TABLE_EXAMPLES = """
Examples:

- `rlmix instances table digits --catalogue cheap --limit 8`

- `rlmix instances table configs/instances/transfer.yaml --part validation --data-dir data`
"""

HEADROOM_EXAMPLES = """
Examples:

- `rlmix instances headroom digits --limit 16`

- `rlmix instances headroom configs/instances/transfer.yaml --judge configs/instances/transfer-data.yaml --processes 2`

- `rlmix instances headroom digits --watch` says what a policy could learn from watching
"""

app = typer.Typer(help="Look at sets of training problems, and at which mix wins where.")

_Recipe = Annotated[str, typer.Argument(help="digits, or the YAML file of a recipe.")]
_Part = Annotated[str, typer.Option(help="train, validation or heldout.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]


@app.command(epilog=SHOW_EXAMPLES)
def show(
    recipe: _Recipe,
    part: _Part = "train",
    as_json: _Json = False,
) -> None:
    """Show the kinds of training problems in a set, how many there are of each, and their ranges."""
    instances = _part(recipe, part, None)
    if as_json:
        documents = [one.document() for one in instances.instances]
        document = {"name": instances.name, "digest": instances.digest, "horizon": instances.horizon}
        typer.echo(json.dumps({**document, "instances": documents}, indent=2))
        return
    grid = Grid("images and model", "count", "steps", "epochs", "wrong labels")
    for kind, members in _kinds(instances.instances).items():
        epochs = [one.total_steps * one.batch_size / one.train_size for one in members]
        grid.add_row(
            kind,
            str(len(members)),
            ", ".join(map(str, sorted({one.total_steps for one in members}))),
            _range(epochs, "{:.1f}"),
            _range([one.noise for one in members], "{:.0%}"),
        )
    console = Console(soft_wrap=True)
    console.print(grid)
    console.print(
        f"{instances.name}: {len(instances)} instances, {instances.horizon} decisions each, "
        f"digest {instances.digest[:16]}",
        highlight=False,
    )


@app.command(epilog=TABLE_EXAMPLES)
def table(
    recipe: _Recipe,
    part: _Part = "train",
    catalogue: Annotated[str, typer.Option(help="The entries to compare: v0 or cheap.")] = "v0",
    limit: Annotated[int | None, typer.Option(help="Use only so many instances, from the first on.", min=1)] = None,
    out: Annotated[Path | None, typer.Option(help="CSV file with a line for each training.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where data sets lie; else $RLMIX_DATA, else ./data.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu",
    processes: Annotated[int, typer.Option(help=PROCESSES, min=1)] = 1,
    threads: Annotated[int, typer.Option(help=THREADS, min=1)] = 1,
    as_json: _Json = False,
) -> None:
    """Train every instance under every entry, and show which entry wins where.

    Two trainings each, scored on held-out training images. What is known is kept in $RLMIX_CACHE (or ~/.cache/rlmix)
    under the digests of set and catalogue, so an interrupted table goes on where it was.
    """
    from rlmix._files import write_text
    from rlmix.envs.block import Library
    from rlmix.policy import codec
    from rlmix.training.loop import choose_device

    instances, entries = _part(recipe, part, limit), codec.catalogue(catalogue)
    library = Library(entries, data_dir, choose_device(device))
    (found,) = _tables([instances], library, processes, threads, quiet=as_json)
    if out is not None:
        write_text(out, _csv(found))
    summary = _summary(
        found, instances, {name: entry.method for name, entry in zip(entries.names, entries.decisions, strict=True)}
    )
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        _print(found, instances, summary)


@app.command(epilog=HEADROOM_EXAMPLES)
def headroom(
    recipe: _Recipe,
    judge: Annotated[
        str | None, typer.Option(help="Recipe whose validation instances are judged on, instead of the same one.")
    ] = None,
    catalogue: Annotated[str, typer.Option(help="The entries to choose from: v0 or cheap.")] = "cheap",
    limit: Annotated[int | None, typer.Option(help="Use only so many instances of each part.", min=1)] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Train each instance once more, for selectors that see what a policy sees in a training."
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the selectors, and of what they watch.", min=0)] = 0,
    data_dir: Annotated[Path | None, typer.Option(help="Where data sets lie; else $RLMIX_DATA, else ./data.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu",
    processes: Annotated[int, typer.Option(help=PROCESSES, min=1)] = 1,
    threads: Annotated[int, typer.Option(help=THREADS, min=1)] = 1,
    as_json: _Json = False,
) -> None:
    """Show what choosing the mix for each training could gain, and how much of that is known before it begins.

    Judged on validation instances, from the reference tables of training and validation instances, which are computed
    as `rlmix instances table` does it. A selector is fitted to the former: what an agent should at least learn.
    """
    from rlmix.agents import headroom as ways
    from rlmix.envs.block import Library
    from rlmix.policy import codec
    from rlmix.training.loop import choose_device

    known, judged = _part(recipe, "train", limit), _part(judge or recipe, "validation", limit)
    library = Library(codec.catalogue(catalogue), data_dir, choose_device(device))
    tables = _tables([known, judged], library, processes, threads, quiet=as_json)
    watched = None
    if watch:
        with _trainings(threads, quiet=as_json) as count:
            look = functools.partial(
                ways.watch,
                catalogue=library.catalogue,
                seed=seed,
                data_dir=data_dir,
                device=library.device,
                processes=processes,
                progress=count,
            )
            watched = look(known), look(judged)
    found = ways.headroom(tables[0], known, tables[1], judged, library, seed=seed, watched=watched)
    if as_json:
        rows = [{**asdict(row), "entries": dict(zip(tables[0].entries, row.entries, strict=True))} for row in found]
        typer.echo(json.dumps({"known": known.name, "judged": judged.name, "ways": rows}, indent=2))
        return
    grid = Grid(
        title=f"{len(judged)} instances of {judged.name}, known: {len(known)} of {known.name}",
        caption="accuracy on held-out training images; difference in points, with its 95 % interval over instances",
    )
    for heading in ("choice", "accuracy", "to uniform random", "how often each entry is chosen"):
        grid.add_column(heading, no_wrap=heading == "choice")
    for row in found:
        gain = row.to_uniform
        grid.add_row(
            row.name,
            f"{row.accuracy:.2%}",
            f"{100 * gain.estimate:+.2f} [{100 * gain.low:+.2f}, {100 * gain.high:+.2f}]",
            ", ".join(f"{name} {many}" for name, many in zip(tables[0].entries, row.entries, strict=True) if many),
        )
    Console(soft_wrap=True).print(grid)


def _tables(sets: Sequence[InstanceSet], library: Library, processes: int, threads: int, *, quiet: bool) -> list[Table]:
    """Return the reference tables of sets with a progress bar; what is finished outlives an interruption."""
    from rlmix.envs.reference import References

    with _trainings(threads, quiet=quiet) as count:
        return [References(part, library, count, processes).table() for part in sets]


@contextmanager
def _trainings(threads: int, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Give a progress bar to trainings, and say what is left of them when they are stopped."""
    try:
        with torch_threads(threads), counting_bar(Console(stderr=True, quiet=quiet)) as count:
            yield count
    except KeyboardInterrupt:
        Console(stderr=True).print("\nStopped. What was finished is kept; the same command goes on.")
        raise typer.Exit(INTERRUPTED) from None


def _part(recipe: str, part: str, limit: int | None) -> InstanceSet:
    from rlmix.envs.instances import Part, instance_set, limited

    # A recipe refuses what is no part of it.
    return limited(instance_set(recipe, cast(Part, part)), limit)


def _kinds(instances: Sequence[Instance]) -> dict[str, list[Instance]]:
    """Return the instances by what their images are and by their model."""
    found: dict[str, list[Instance]] = {}
    for one in instances:
        side = "" if one.side is None else f" {one.side}x{one.side}"
        classes = "" if one.classes is None else f", {one.classes} classes"
        grey = " grey" if one.grey else ""
        found.setdefault(f"{one.data}{side}{grey}{classes}, {one.model}", []).append(one)
    return found


def _range(values: Sequence[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low}-{high}"


def _summary(found: Table, instances: InstanceSet, methods: dict[str, str]) -> dict[str, Any]:
    """Return who wins how often, and what choosing is worth, as JSON takes it."""
    scores, accuracies = found.scores.mean(2), found.accuracies.mean(2)
    winners = [found.entries[row] for row in scores.argmax(1).tolist()]
    best = int(scores.mean(0).argmax())
    # Chosen by one replicate and measured by the other: choosing and measuring by the same one would flatter.
    crossed = [
        found.accuracies[:, :, 1 - one].gather(1, found.scores[:, :, one].argmax(1, keepdim=True)) for one in (0, 1)
    ]
    share = Counter(methods[name] for name in winners)
    return {
        "set": instances.name,
        "digest": instances.digest,
        "instances": len(instances),
        "wins by entry": dict(Counter(winners).most_common()),
        "wins by method": dict(share.most_common()),
        "methods that win on a tenth or more": sorted(
            method for method, wins in share.items() if wins >= _SHARE * len(instances)
        ),
        "mean accuracy": {name: accuracies[:, row].mean().item() for row, name in enumerate(found.entries)},
        "best fixed": found.entries[best],
        "unbiased oracle accuracy": sum(float(part.mean()) for part in crossed) / 2,
    }


def _print(found: Table, instances: InstanceSet, summary: dict[str, Any]) -> None:
    console = Console(soft_wrap=True)
    scores, accuracies = found.scores.mean(2), found.accuracies.mean(2)
    places = {name: row for row, name in enumerate(found.instances)}
    kinds = _kinds(instances.instances)
    rows = [[places[one.id] for one in members] for members in kinds.values()]
    grid = Grid("entry", *kinds)
    for number, entry in enumerate(found.entries):
        means = [100 * float(accuracies[part, number].mean()) for part in rows]
        wins = [int((scores[part].argmax(1) == number).sum()) for part in rows]
        grid.add_row(entry, *(f"{mean:.1f} ({won})" for mean, won in zip(means, wins, strict=True)))
    console.print(grid)
    console.print(
        "Mean accuracy on held-out training images in percent; in brackets on how many instances the entry scores best."
    )
    by_method = ", ".join(f"{name} {wins / len(instances):.0%}" for name, wins in summary["wins by method"].items())
    means = summary["mean accuracy"]
    console.print(f"Wins by method: {by_method}.", highlight=False)
    console.print(
        f"Best fixed: {summary['best fixed']} {means[summary['best fixed']]:.2%}; best entry of each instance, chosen "
        f"by the other of two replicates: {summary['unbiased oracle accuracy']:.2%}.",
        highlight=False,
    )


def _csv(found: Table) -> str:
    lines = ["instance,entry,replicate,score,accuracy"]
    for row, name in enumerate(found.instances):
        for column, entry in enumerate(found.entries):
            for replicate in range(found.scores.shape[2]):
                score, accuracy = (float(part[row, column, replicate]) for part in (found.scores, found.accuracies))
                lines.append(f"{name},{entry},{replicate},{score!r},{accuracy!r}")
    return "\n".join(lines) + "\n"
