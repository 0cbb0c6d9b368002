"""A report in one HTML file that needs nothing else: no script, no style sheet, no picture from elsewhere."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Mapping, Sequence

from rlmix._files import write_text
from rlmix.errors import InputError

# `light-dark()` would be shorter, but browsers of 2023 do not know it.
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --note: #5b6270; --page: #f5f6f8; --card: #ffffff;
        --line: #e1e4e9; --accent: #0a6ba8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7e9ee; --note: #a2a9b6; --page: #14171c; --card: #1d2128; --line: #323843; --accent: #6bbcf0; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 1.25rem; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .6rem; }
dl, dd { margin: 0; }
.summary { display: grid; grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr)); gap: .75rem; }
.summary div, figure, .table { background: var(--card); border: 1px solid var(--line);
                                        border-radius: 12px; }
.summary div { padding: .8rem 1rem; }
dt { color: var(--note); font-size: .84rem; }
.summary dd { font-size: 1.12rem; font-weight: 600; overflow-wrap: anywhere; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; font-variant-numeric: tabular-nums; }
th, td { padding: .55rem .9rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--note); font-weight: 600; font-size: .84rem; }
th:first-child, td:first-child { text-align: left; }
tbody th { font-weight: 600; }
figure { margin: 0; padding: 1rem; }
figure img { display: block; width: 100%; height: auto; background: #ffffff; border-radius: 8px; padding: .5rem; }
.picture { overflow-x: auto; border-radius: 8px; }
figcaption { color: var(--note); font-size: .9rem; margin-top: .7rem; }
.made { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; font-size: .9rem; }
.made dt, .made dd { padding: .45rem .9rem; border-top: 1px solid var(--line); }
.made dt:first-of-type, .made dd:first-of-type { border-top: 0; }
.made dd { overflow-wrap: anywhere; white-space: pre-wrap; }
@media (max-width: 30rem) {
  main { padding: 1.25rem .75rem 3rem; } h1 { font-size: 1.4rem; } figure { padding: .6rem; }
  figure img { width: 38rem; max-width: none; }
  th, td { padding: .5rem .65rem; } .made { grid-template-columns: 1fr; }
  .made dd { border-top: 0; padding-top: 0; } .made dt { padding-bottom: 0; }
}
@media print { body { background: none; } figure, .table { break-inside: avoid; } }
"""


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    summary: Sequence[tuple[str, str]],
    table: tuple[Sequence[str], Sequence[Sequence[str]]],
    figures: Sequence[tuple[str, str, bytes]],
    provenance: Mapping[str, str],
) -> None:
    """Write the report of a run.

    Args:
        path: the HTML file, written atomically.
        title: of the page.
        summary: (what, value) pairs that stand first.
        table: the header, and rows of as many cells; the first column names the row.
        figures: (title, caption, bytes of a PNG file).
        provenance: how it was made: command, seeds, versions, hardware, date.

    Raises:
        InputError: a row of another length than the header.
        OutputError: the file cannot be written.
    """
    header, rows = table
    for row in rows:
        if len(row) != len(header):
            raise InputError(f"`table` has the header {list(header)}, but the row {list(row)}.")
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        _pairs("summary", summary),
        "<h2>Results</h2>",
        _table(header, rows),
        *(_figure(*figure) for figure in figures),
        "<h2>How it was made</h2>",
        f'<div class="table">{_pairs("made", list(provenance.items()), boxed=False)}</div>',
    ]
    write_text(path, _page(title, "\n".join(parts)))


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _pairs(kind: str, pairs: Sequence[tuple[str, str]], *, boxed: bool = True) -> str:
    items = [f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in pairs]
    inside = "\n".join(f"<div>{item}</div>" if boxed else item for item in items)
    return f'<dl class="{kind}">\n{inside}\n</dl>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
    body = "\n".join(_row(row) for row in rows)
    return f'<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _row(row: Sequence[str]) -> str:
    first, *others = (html.escape(cell) for cell in row)
    return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>'


def _figure(title: str, caption: str, image: bytes) -> str:
    source = f"data:image/png;base64,{base64.b64encode(image).decode('ascii')}"
    return (
        f"<h2>{html.escape(title)}</h2>\n<figure>"
        f'<div class="picture"><img src="{source}" alt="{html.escape(title)}: {html.escape(caption)}"></div>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
