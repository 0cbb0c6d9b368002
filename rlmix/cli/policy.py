"""`rlmix policy`: what a learned policy is and does, several as one, and policies to begin learning with."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from torch import Tensor

    from rlmix.policy.artifact import LearnedPolicy

app = typer.Typer(
    help="Look at learned policies, join several, and make untrained ones.",
    rich_markup_mode="markdown",
    no_args_is_help=True,
)

_EXAMPLES = """
Examples:

- `rlmix policy show runs/demo/agent/policy`

- `rlmix policy show default` shows the policy of this package

- `rlmix policy show runs/demo/agent/policy --json`
"""
_NEW_EXAMPLES = """
Examples:

- `rlmix policy new runs/policy`

- `rlmix policy new runs/policy --catalogue v0 --horizon 16 --hidden 128 64`
"""
_JOIN_EXAMPLES = """
Examples:

- `rlmix policy join runs/seed-0/policy runs/seed-1/policy runs/seed-2/policy --out runs/joined`

- `rlmix agent evaluate --policy runs/joined --levels configs/levels/transfer.yaml`
"""
# From improbable to certain.
_STYLES = ("dim", "default", "bold", "bold reverse")


@app.command(epilog=_EXAMPLES)
def show(
    folder: Annotated[Path, typer.Argument(help="Folder of the policy, or default.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    """Print a policy's training card, what it looks at, what it chooses from, and what it does over a training.

    What it does is asked at each decision of an imagined training, whose signals are all in the middle of the range
    that the policy was trained on: a rough picture, since a policy answers to what it sees.
    """
    from rlmix.policy.artifact import load

    policy = load(folder)
    described = _described(policy)
    if as_json:
        typer.echo(json.dumps(described, indent=2))
        return
    console = Console(soft_wrap=True)
    summary = {"folder": str(folder), "decisions in a training": policy.horizon}
    card = dict(described["card"])
    results, limits = card.pop("results", None), card.pop("limits", None)
    _print_pairs(console, "Policy", summary | card)
    if results is not None:
        _print_results(console, results)
    if limits is not None:
        _print_limits(console, limits)
    _print_rows(console, "Observation", ("entry", "low", "high", "meaning"), [
        (entry["name"], f"{entry['low']:.3f}", f"{entry['high']:.3f}", _meaning(entry["name"]))
        for entry in described["observation"]
    ])  # fmt: skip
    ranges = described["actions"].get("space", [])
    if ranges:
        _print_rows(console, f"Actions ({described['actions']['kind']})", ("entry", "decision", "sets"), [
            (entry["name"], _fixed_part(entry["decision"]), _open_part(entry["parameters"])) for entry in ranges
        ])  # fmt: skip
    else:
        _print_rows(console, "Catalogue", ("entry", "decision"), [
            (entry["name"], entry["text"]) for entry in described["catalogue"]
        ])  # fmt: skip
    _print_probabilities(console, described["probabilities"])
    if ranges:
        header = ("entry", *(f"{row['progress']:.0%}" for row in described["probabilities"]))
        _print_rows(console, "Parameters over the progress of a training", header, [
            (entry["name"], *(_values(row["parameters"][entry["name"]]) for row in described["probabilities"]))
            for entry in ranges if entry["parameters"]
        ])  # fmt: skip


@app.command(epilog=_NEW_EXAMPLES)
def new(
    folder: Annotated[Path, typer.Argument(help="Where to write it.")],
    catalogue: Annotated[str, typer.Option(help="What it chooses from: cheap, or v0 with saliency methods.")] = "cheap",
    horizon: Annotated[int, typer.Option(help="Decisions in a training.", min=1)] = 8,
    hidden: Annotated[tuple[int, int], typer.Option(help="Widths of the two hidden layers.")] = (64, 64),
    seed: Annotated[int, typer.Option(help="Seed of the hidden weights.", min=0, max=2**32 - 1)] = 0,
) -> None:
    """Write an untrained policy: it chooses each entry with the same probability, and `rlmix learn` can train it."""
    from rlmix.errors import OutputError
    from rlmix.policy.artifact import DOCUMENT, save
    from rlmix.policy.codec import catalogue as known
    from rlmix.policy.untrained import untrained

    if (folder / DOCUMENT).exists():
        raise OutputError(f"`{folder}` already holds a policy. Give another folder, or delete it.")
    entries = known(catalogue)
    save(folder, untrained(entries, horizon=horizon, hidden=hidden, seed=seed))
    typer.echo(f"An untrained policy over {', '.join(entries.names)} is in {folder}.")


@app.command(epilog=_JOIN_EXAMPLES)
def join(
    folders: Annotated[list[Path], typer.Argument(help="Folders of two policies or more.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the joined one.")],
) -> None:
    """Write one policy that chooses by the mean of several, trained alike but for their seeds.

    Policies of different seeds err in different trainings, so their mean errs less often. It is a policy like any
    other, with all their hidden units: it can be evaluated, deployed, served and trained on.
    """
    from rlmix.errors import OutputError
    from rlmix.policy.artifact import DOCUMENT, load, save
    from rlmix.policy.joined import joined

    if (out / DOCUMENT).exists():
        raise OutputError(f"`{out}` already holds a policy. Give another folder, or delete it.")
    save(out, joined([load(folder) for folder in folders]))
    typer.echo(f"The mean of {len(folders)} policies is in {out}.")


def _meaning(name: str) -> str:
    from rlmix.policy.signals import ENTRIES

    kind, _, rest = name.partition("/")
    named = {"used": f"share of the steps so far with {rest}", "last": f"1 if {rest} was chosen last"}
    return ENTRIES.get(name) or named.get(kind, "")


def _fixed_part(decision: Mapping[str, Any]) -> str:
    from rlmix.policy.decision import Decision

    return Decision.from_json(decision).text


def _open_part(parameters: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{one['name']} {one['low']:g} to {one['high']:g} ({one['scale']})" for one in parameters)


def _values(parameters: Mapping[str, float]) -> str:
    return ", ".join(f"{value:.3g}" for value in parameters.values())


def _described(policy: LearnedPolicy) -> dict[str, Any]:
    """Return everything that is shown, as JSON can hold it."""
    ranges = zip(policy.observation_names, policy.low.tolist(), policy.high.tolist(), strict=True)
    entries = zip(policy.catalogue.names, policy.catalogue.decisions, strict=True)
    return {
        "horizon": policy.horizon,
        "actions": {"kind": "discrete"} if policy.codec is None else policy.codec.to_json(),
        "card": dict(policy.card),
        "observation": [{"name": name, "low": low, "high": high} for name, low, high in ranges],
        "catalogue": [
            {"name": name, "text": decision.text, "decision": decision.to_json()} for name, decision in entries
        ],
        "probabilities": _probabilities(policy),
    }


def _probabilities(policy: LearnedPolicy) -> list[dict[str, Any]]:
    """Return the probability of each entry at each decision of an imagined training; see `_signals`.

    Where the policy sets parameters, also which values it would give those of each entry.
    """
    rows: list[dict[str, Any]] = []
    chosen: list[int] = []
    for number in range(policy.horizon):
        observation = _signals(policy, number, chosen)
        shares = policy.probabilities(observation.unsqueeze(0))[0].tolist()
        chosen.append(policy.choose(observation))
        entries = dict(zip(policy.catalogue.names, shares, strict=True))
        row = {"progress": number / policy.horizon, "entries": entries}
        if policy.codec is not None:
            row["parameters"] = _parameters(policy, observation)
        rows.append(row)
    return rows


def _parameters(policy: LearnedPolicy, observation: Tensor) -> dict[str, dict[str, Any]]:
    """Return the parameters that the policy would set, by entry."""
    found = {}
    for entry, described in enumerate(policy.actions.to_json()["space"]):
        given = dict(policy.decision(entry, observation).params)
        found[described["name"]] = {one["name"]: given[one["name"]] for one in described["parameters"]}
    return found


def _signals(policy: LearnedPolicy, number: int, chosen: Sequence[int]) -> Tensor:
    """Return what the policy would see at a decision: float32 [D].

    Time, learning rate and its own earlier choices are as they would be, every source is there, and all that depends
    on the training is in the middle of its range.
    """
    import torch

    progress = number / policy.horizon
    known = {"time/progress": 2 * progress - 1, "time/lr": 0.5 * (1 + math.cos(math.pi * progress))}
    decisions = [policy.catalogue.decisions[entry] for entry in chosen]
    for method in policy.catalogue.methods:
        shares = [decision.usage().get(method, 0.0) for decision in decisions]
        known[f"used/{method}"] = sum(shares) / max(1, len(shares))
    for entry, name in enumerate(policy.catalogue.names):
        known[f"last/{name}"] = float(chosen[-1:] == [entry])
    middle = ((policy.low + policy.high) / 2).tolist()
    highest = policy.high.tolist()
    return torch.tensor([
        highest[place] if name.startswith("has/") else known.get(name, middle[place])
        for place, name in enumerate(policy.observation_names)
    ])  # fmt: skip


def _print_pairs(console: Console, title: str, pairs: Mapping[str, Any]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in pairs.items():
        table.add_row(escape(name), escape(value if isinstance(value, str) else json.dumps(value)))
    console.print(table)


def _print_results(console: Console, results: Mapping[str, Any]) -> None:
    """Print a column for each level and a line for each baseline."""
    levels = results["levels"]
    names = dict.fromkeys(name for level in levels for name in level["to"])
    header = ("beside", *(f"{level['name']} ({level['instances']} x {level['replicates']})" for level in levels))
    _print_rows(console, f"Results: {results['what']}", header, [
        (name, *("{:+.2f} [{:+.2f}, {:+.2f}]".format(*level["to"][name]) if name in level["to"] else ""
                 for level in levels))
        for name in names
    ])  # fmt: skip


def _print_limits(console: Console, limits: Mapping[str, Any]) -> None:
    """Print where the policy decides, and what is used elsewhere."""
    from rlmix.policy.limits import FACTS

    title = f"Limits: in a training outside them `{limits['otherwise']}` is used"
    _print_rows(console, title, ("of", "lowest", "highest"), [
        (FACTS[name], f"{low:,.4g}", f"{high:,.4g}") for name, (low, high) in limits["ranges"].items()
    ])  # fmt: skip


def _print_rows(console: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*header, title=escape(title), title_justify="left")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)


def _print_probabilities(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a line for each entry and a column for each decision, shaded by probability."""
    header = ("entry", *(f"{row['progress']:.0%}" for row in rows))
    table = Table(*header, title="Probability over the progress of a training", title_justify="left")
    for name in rows[0]["entries"]:
        table.add_row(escape(name), *(_shaded(row["entries"][name]) for row in rows))
    console.print(table)


def _shaded(share: float) -> str:
    return f"[{_STYLES[min(int(share * len(_STYLES)), len(_STYLES) - 1)]}]{share:.0%}[/]"
