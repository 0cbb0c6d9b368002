"""The registry as Markdown, so that documentation cannot say anything else than the code.

`python -m rlmix.methods.table` shows the table of all methods.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Mapping

import torch

from rlmix.methods.method import AbstractMethod
from rlmix.methods.registry import METHODS, get, names
from rlmix.ops.rng import Streams
from rlmix.types import MixInputs

_COMMON = ("scope", "pairing", "probability")
"""Parameters that most methods have: they stand last."""


def table() -> str:
    """Return one row for each registered method: its name, what it does, its source."""
    rows = [[_summary(METHODS[name]), _linked(METHODS[name].source)] for name in names()]
    return _markdown(["method", "what it does", "source"], rows)


def full_table(measured: Mapping[str, Mapping[str, str]]) -> str:
    """Return one row for each registered method, with what it needs, what it costs and when to use it.

    Args:
        measured: more columns on the cost: heading -> method's name -> cell. A method that is missing gets an empty
            cell.
    """
    rows = []
    for name in names():
        method = get(name)
        passes = "those of its maps" if method.needs_saliency else "0"
        cells = [column.get(name, "") for column in measured.values()]
        rows.append(
            [_summary(type(method)), _linked(method.source), _needs(method), passes, *cells, _use(type(method))]
        )
    return _markdown(["method", "what it does", "source", "needs", "passes of the network", *measured, "use it"], rows)


def cards() -> str:
    """Return one section for each registered method: its docstring, its parameters and their defaults."""
    return "\n\n".join(_card(name) for name in names())


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    """Return a table with one row for each registered method, its name in front."""
    lines = [head, ["---"] * len(head)]
    lines += [[f"`{name}`", *cells] for name, cells in zip(names(), rows, strict=True)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _card(name: str) -> str:
    method = METHODS[name]
    text, arguments = _docstring(method)
    lines = [f"## {name}", text, "| parameter | default | meaning |\n| --- | --- | --- |"]
    own = [field for field in dataclasses.fields(method) if field.name not in _COMMON]
    common = [field for name in _COMMON for field in dataclasses.fields(method) if field.name == name]
    for field in [*own, *common]:
        default = "required" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        meaning = arguments.get(field.name) or _docstring(AbstractMethod)[1][field.name]
        if meaning[1:2] != " ":
            # A letter that stands alone is a symbol.
            meaning = meaning[0].upper() + meaning[1:]
        meaning = meaning.replace("|", "\\|")
        lines[-1] += f"\n| `{field.name}` | {default} | {meaning} |"
    return "\n\n".join(lines)


def _needs(method: AbstractMethod) -> str:
    needed = ["saliency maps"] if method.needs_saliency else []
    return ", ".join([*needed, "looks at the images"] if _looks_at_images(method) else needed)


def _looks_at_images(method: AbstractMethod) -> bool:
    """Say whether a plan is another one where the images are known."""
    generator = torch.Generator().manual_seed(0)
    images, maps = torch.rand(8, 3, 16, 16, generator=generator), torch.rand(8, 16, 16, generator=generator)
    without = MixInputs(8, 16, 16, saliency=maps)
    given = dataclasses.replace(without, images=images)
    return any(not method.plan(given, Streams([key])).equal(method.plan(without, Streams([key]))) for key in range(4))


def _summary(method: type) -> str:
    """Return the first sentence of the docstring."""
    return _paragraphs(method)[0].rstrip(".")


def _use(method: type) -> str:
    """Return what the paragraph `Use: ...` of the docstring says."""
    found = [text for text in _paragraphs(method) if text.startswith("Use: ")]
    return found[0].removeprefix("Use: ") if found else ""


def _paragraphs(method: type) -> list[str]:
    return [text.replace("\n", " ") for text in _docstring(method)[0].split("\n\n")]


def _docstring(method: type) -> tuple[str, dict[str, str]]:
    """Return the text above the sections of a Google docstring, and the meaning of each argument."""
    document = inspect.getdoc(method) or ""
    text, _, sections = document.partition("\n\nArgs:\n")
    arguments = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", sections.partition("\n\n")[0], re.MULTILINE)
    return text, {name: re.sub(r"\s+", " ", meaning).strip() for name, meaning in arguments}


def _linked(source: str) -> str:
    """Return a source with its address as a link."""
    found = re.match(r"(?P<text>.+?), (?P<url>https://[^\s,]+)(?P<rest>.*)", source)
    if found is None:
        return re.sub(r"(https://[^\s,]+)", r"<\1>", source)
    return f"[{found['text']}]({found['url']}){found['rest']}"


if __name__ == "__main__":
    sys.stdout.write(f"{table()}\n")
