"""What the documentation shows works, and what it says of the code is what the code says."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("**/*.md")),
]


def blocks(document: Path, language: str) -> list[tuple[int, str]]:
    """Return (line number, text) of the fenced blocks of one language."""
    text = document.read_text(encoding="utf-8")
    return [
        (text[: found.start()].count("\n") + 1, found[1])
        for found in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ]


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if blocks(path, "python")], ids=lambda path: path.name)
def test_the_code_of_a_document_runs(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a document run one after the other, as a reader would type them, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLMIX_DATA", str(tmp_path))
    names: dict[str, object] = {"__name__": "__main__"}
    for line, text in blocks(document, "python"):
        # Empty lines in front make a traceback's line numbers those of the document.
        exec(compile("\n" * line + text, str(document), "exec"), names)


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """Return scripts/docs.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_script", ROOT / "scripts" / "docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_counts(text: str) -> str:
    """Return a document without what another version of torch may count differently: numbers in cells, its version."""
    return re.sub(r"\| [\d,]+( to [\d,]+| \+ \d+ B)? (?=\|)|with torch [\w.]+\. They", "", text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_generated_parts_are_up_to_date(document: Path, generator: ModuleType) -> None:
    """A table that is written by hand says, sooner or later, what the code no longer does; `make docs` mends it."""
    text = document.read_text(encoding="utf-8")
    counted = re.search(r"counted on .* with torch ([\w.]+)\. They", text)
    seen = without_counts if counted is not None and counted[1] != generator.RELEASE else str
    assert seen(generator.updated(text)) == seen(text), "run `make docs`"


def test_counts_of_another_torch_are_all_that_may_differ(generator: ModuleType) -> None:
    """What hides too much finds nothing, what hides too little fails with every release of torch."""
    note = generator.COUNTED.format
    mine = "| `a` | x | 0 | 1,234 | 12 |\n| `b` | y | 0 | 67 + 6 B | 3 |\n" + note(torch="2.15.0")
    theirs = "| `a` | x | 0 | 1,230 to 1,400 | 12 |\n| `b` | y | 0 | 68 + 7 B | 3 |\n" + note(torch="2.8.0")
    assert without_counts(mine) == without_counts(theirs)
    assert without_counts(mine) != without_counts(theirs.replace("| x |", "| z |"))


def test_times_are_those_of_the_newest_results(
    generator: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results that time no methods, or none at all, leave the column out."""
    monkeypatch.setattr(generator, "RESULTS", tmp_path)
    assert generator.timings() is None
    for file, hour, group, median in (("a", 3, "apply", 9.0), ("b", 2, "methods", 1.25), ("c", 1, "methods", 4.0)):
        case = {"group": group, "candidates": {name: {"ms": {"median": median}} for name in ("mixup", "uniform")}}
        machine = {"date": f"2026-01-02T0{hour}:00:00", "processor": "a processor", "torch": "2.15.0"}
        result = {"environment": machine, "runs": [{"cases": [{"group": "cutmix", "candidates": {}}, case]}]}
        (tmp_path / f"{file}.json").write_text(json.dumps(result), encoding="utf-8")
    (tmp_path / "d.json").write_text('{"environment": {}, "runs": {"another form": 1}}', encoding="utf-8")
    cells, note = generator.timings()
    assert cells == {"mixup": "1,250", "uniform": generator.ITS_CHOICE}
    assert "2026-01-02" in note
    assert "b.json" in note


def test_every_generated_block_is_shown_somewhere(generator: ModuleType) -> None:
    """Without its marks a table is never updated, in silence."""
    texts = "".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    assert not [name for name in generator.BLOCKS if f"<!-- {name} -->" not in texts]
    assert "<!-- methods -->" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_files_lead_somewhere(document: Path) -> None:
    """A link that was right before a file moved."""
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert not missing


def commands() -> list[str]:
    """Return the lines that call `rlmix` in the shell blocks of all documents."""
    lines = [line for document in DOCUMENTS for _, text in blocks(document, "sh") for line in text.splitlines()]
    return sorted({line for line in lines if line.startswith("rlmix ")})


@pytest.mark.parametrize("line", commands())
def test_a_command_that_is_shown_exists_with_its_options(line: str) -> None:
    """An option that was renamed lives on in the documentation, where people copy it from."""
    import typer.main

    from rlmix.cli.main import app

    words = line.split()[1:]
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, line
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("line", [line for line in commands() if "--config" in line])
def test_a_configuration_that_is_shown_exists(line: str) -> None:
    """The first command that a reader copies must not fail on its path."""
    words = line.split()
    assert (ROOT / words[words.index("--config") + 1]).is_file()
