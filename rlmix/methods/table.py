"""The registry as Markdown, so that documentation cannot say anything else than the code.

`python -m rlmix.methods.table` shows the table of all methods.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys

from rlmix.methods.registry import METHODS, get, names

_HEAD = "| method | what it does | parameters | saliency | source |\n| --- | --- | --- | --- | --- |"


def table() -> str:
    """Return one row for each registered method."""
    return "\n".join([_HEAD, *(_row(name) for name in names())])


def cards() -> str:
    """Return one section for each registered method: its docstring, its parameters and their defaults."""
    return "\n\n".join(_card(name) for name in names())


def _row(name: str) -> str:
    method = METHODS[name]
    parameters = ", ".join(f"`{field.name}`" for field in dataclasses.fields(method) if field.name != "probability")
    needs = "needed" if get(name).needs_saliency else ""
    return f"| `{name}` | {_summary(method)} | {parameters} | {needs} | {_linked(method.source)} |"


def _card(name: str) -> str:
    method = METHODS[name]
    text, arguments = _docstring(method)
    lines = [f"## {name}", text, "| parameter | default | meaning |\n| --- | --- | --- |"]
    # The inherited `probability` comes first among the fields, and matters least.
    for field in sorted(dataclasses.fields(method), key=lambda field: field.name == "probability"):
        default = "required" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        meaning = arguments.get(field.name, "The share of images that are mixed at all.")
        meaning = (meaning[:1].upper() + meaning[1:]).replace("|", "\\|")
        lines[-1] += f"\n| `{field.name}` | {default} | {meaning} |"
    return "\n\n".join(lines)


def _summary(method: type) -> str:
    """Return the first sentence of the docstring."""
    return _docstring(method)[0].split("\n\n")[0].replace("\n", " ").rstrip(".")


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
