"""The registry as Markdown."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import pytest

from rlmix.methods.registry import METHODS, get, names
from rlmix.methods.table import cards, full_table, table


def rows(text: str) -> dict[str, dict[str, str]]:
    """Return a table's cells by method and heading."""
    head, rule, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert set(rule) == {"---"}
    return {line[0].strip("`"): dict(zip(head, line, strict=True)) for line in lines}


@pytest.mark.parametrize("made", [table, lambda: full_table({})], ids=["short", "full"])
def test_every_method_has_a_whole_row(made: Callable[[], str]) -> None:
    """A method without its source, or without a word on what it is for, cannot be chosen."""
    found = rows(made())
    assert tuple(found) == names()
    for name, row in found.items():
        missing = [heading for heading, cell in row.items() if not cell and heading != "needs"]
        assert not missing, name
        assert "https://" in row["source"]


def test_needs_are_those_that_the_methods_have() -> None:
    """Whoever has no maps must see it before the error does."""
    found = rows(full_table({}))
    for name in names():
        assert ("saliency maps" in found[name]["needs"]) == get(name).needs_saliency
        assert found[name]["passes of the network"] == ("those of its maps" if get(name).needs_saliency else "0")
    assert {name for name in names() if "looks at the images" in found[name]["needs"]} == {"puzzlemix"}


def test_measured_columns_stand_where_they_were_measured() -> None:
    """A method that was not measured must not shift the cells of its row."""
    found = rows(full_table({"operations": {"cutmix": "12"}, "microseconds": {"mixup": "7"}}))
    assert found["cutmix"]["operations"] == "12"
    assert found["cutmix"]["microseconds"] == ""
    assert found["mixup"]["microseconds"] == "7"
    assert found["mixup"]["use it"] == rows(full_table({}))["mixup"]["use it"]


def test_a_card_has_every_parameter_with_its_default_and_meaning() -> None:
    """Parameters are looked up there, with their ranges."""
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", cards(), re.MULTILINE | re.DOTALL))
    assert tuple(sections) == names()
    for name, section in sections.items():
        told = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", section, re.MULTILINE)
        assert {parameter for parameter, _, _ in told} == {field.name for field in dataclasses.fields(METHODS[name])}
        assert told[-1][0] == "probability"
        assert "Use: " in section
        assert "Source: " in section
    assert "| `alpha` | `1.0` | Concentration of the Beta distribution, above 0" in sections["mixup"]
    assert "| `members` | required |" in sections["uniform"]
