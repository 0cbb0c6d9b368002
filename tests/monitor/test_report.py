"""The report in one HTML file."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rlmix.errors import InputError
from rlmix.monitor.report import write_report

PICTURE = b"\x89PNG not really"


class Page(HTMLParser):
    """Collects what a browser would fetch, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def write(path: Path, *, rows: tuple[tuple[str, ...], ...] = (("none", "92.1"),), title: str = "A title") -> Page:
    write_report(
        path,
        title=title,
        summary=[("difference", "+0.7 [0.3, 1.0]")],
        table=(("method", "accuracy"), rows),
        figures=[("Curve", "What it shows", PICTURE)],
        provenance={"command": "rlmix demo --seed 0", "seed": "0"},
    )
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert not page.open
    return page


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    """A report is mailed, and opened where there is no network."""
    page = write(tmp_path / "report.html")
    assert page.links == ["data:image/png;base64," + base64.b64encode(PICTURE).decode()]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "http" not in text
    assert "<script" not in text
    assert "@import" not in text
    assert "url(" not in text


def test_everything_given_stands_in_the_page(tmp_path: Path) -> None:
    """What is left out is not reported."""
    words = write(tmp_path / "report.html").words
    for expected in ("A title", "difference", "+0.7 [0.3, 1.0]", "method", "none", "92.1", "Curve", "What it shows"):
        assert expected in words
    assert "rlmix demo --seed 0" in words


def test_text_is_no_markup(tmp_path: Path) -> None:
    """A folder called `<b>` must be shown, not obeyed."""
    page = write(tmp_path / "report.html", title='<script>alert("x")</script> & co', rows=(("<b>", "1 < 2"),))
    assert '<script>alert("x")</script> & co' in page.words
    assert "1 < 2" in page.words


def test_a_row_of_another_length_is_refused(tmp_path: Path) -> None:
    """Cells would stand under the wrong heads."""
    with pytest.raises(InputError, match=r"but the row \['none'\]"):
        write(tmp_path / "report.html", rows=(("none",),))


def test_light_dark_and_small_screens_are_served(tmp_path: Path) -> None:
    """These three lines are all that make it so."""
    write(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    assert "max-width: 30rem" in text
