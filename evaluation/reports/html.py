"""HTML pages from templates. A page is one file that loads nothing else, so the KFP UI, MLflow and browsers all show it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STYLE_PATH = Path(__file__).with_name("style.css")
_TEMPLATE = Path(__file__).with_name("table.html.jinja")


def render(template: Path, **values: Any) -> str:
    """Fill a Jinja template, which may also use `style`, the style sheet of all pages. A missing value is an error.

    Every value is escaped, unless the template marks it as safe.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template.read_text(encoding="utf-8")).render(style=STYLE_PATH.read_text(encoding="utf-8"), **values)


def data_uri(picture: bytes) -> str:
    """Return a PNG or SVG as a `data:` URI, which makes the picture a part of the page."""
    kind = "png" if picture.startswith(b"\x89PNG") else "svg+xml"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


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
