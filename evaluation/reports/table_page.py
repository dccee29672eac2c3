"""A page with one table, and the same table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.reports.html import data_uri, render

_TEMPLATE = Path(__file__).with_name("table.html.jinja")


def table_page(
    title: str,
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    card: Sequence[tuple[str, str]],
    lead: Sequence[str] = (),
    notes: Sequence[str] = (),
    pictures: Mapping[str, bytes] | None = None,
) -> str:
    """Return the page as HTML: `lead` paragraphs, the table, `notes`, pictures by caption (PNG or SVG), and the protocol card.

    The first column is text, the others are numbers; " +- " is shown as a plus-minus sign. `card` is as `card_rows` gives it.
    """
    return render(
        _TEMPLATE,
        title=title,
        headers=headers,
        rows=[[cell.replace(" +- ", "\u00a0\u00b1\u00a0") for cell in row] for row in rows],
        lead=lead,
        notes=[line.replace(" +- ", " ± ") for line in notes],
        card=card,
        pictures={caption: data_uri(picture) for caption, picture in (pictures or {}).items()},
    )


def text_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the table as lines with aligned columns."""
    cells = [headers, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
