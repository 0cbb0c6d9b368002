"""Write the generated blocks of the documentation anew: `python scripts/docs.py FILE...`.

A block stands between `<!-- NAME -->` and `<!-- /NAME -->`; the names are those of `BLOCKS`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from rlmix.methods.table import cards, table
from rlmix.policy.codec import catalogue
from rlmix.policy.signals import ENTRIES


def observation() -> str:
    """Return one row for each entry of the observation that does not depend on the catalogue."""
    rows = [f"| `{name}` | {meaning} |" for name, meaning in ENTRIES.items()]
    return "\n".join(["| entry | value |", "| --- | --- |", *rows])


def entries() -> str:
    """Return one row for each entry of the catalogue `v0`."""
    known = catalogue("v0")
    cheap = set(catalogue("cheap").names)
    rows = [
        f"| {number} | `{name}` | `{decision.text}` | {'yes' if name in cheap else ''} |"
        for number, (name, decision) in enumerate(zip(known.names, known.decisions, strict=True))
    ]
    return "\n".join(["| action | name | Decision | in `cheap` |", "| --- | --- | --- | --- |", *rows])


BLOCKS: Mapping[str, Callable[[], str]] = {
    "methods": table,
    "cards": cards,
    "observation": observation,
    "catalogue": entries,
}


def updated(text: str) -> str:
    """Return a document with its generated blocks written anew."""
    for name, make in BLOCKS.items():
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        if start:
            end = f"<!-- /{name} -->"
            text = f"{before}{start}{make()}\n{rest[rest.index(end) :]}"
    return text


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:]):
        file.write_text(updated(file.read_text(encoding="utf-8")), encoding="utf-8")
