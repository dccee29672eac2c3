"""A self-contained HTML page with one table: what a pipeline's page, MLflow and a browser show alike."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .35rem .9rem; text-align: right; border-bottom: 1px solid #8886; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
.words td { text-align: left; } .words th { font-weight: 500; vertical-align: top; white-space: nowrap; }
figure { margin: 1.5rem 0; } img { max-width: 100%; image-rendering: pixelated; }
.note { opacity: .8; }
</style></head><body>
<h1>{{ title }}</h1>
{% for line in lead %}<p>{{ line }}</p>{% endfor %}
<table><thead><tr>{% for header in headers %}<th scope="col">{{ header }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</tbody></table>
{% for caption, data in pictures.items() %}<figure><img alt="{{ caption }}" src="{{ data }}">
<figcaption class="note">{{ caption }}</figcaption></figure>{% endfor %}
{% for line in notes %}<p class="note">{{ line }}</p>{% endfor %}
<h2>Protocol</h2>
<table class="words"><tbody>
{% for name, words in card %}<tr><th scope="row">{{ name }}</th><td>{{ words }}</td></tr>{% endfor %}
</tbody></table>
</body></html>
"""


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
    """The page; every word is escaped.

    Args:
        title: Its heading.
        headers: Of the columns; the first column is words, the others numbers.
        rows: Cells as they are shown.
        card: The protocol card in words (`evaluation.records.protocol_card.card_rows`), the last thing on the page.
        lead: Paragraphs above the table.
        notes: What to know in order to read it.
        pictures: Caption -> PNG or SVG, below the table; they become a part of the page.
    """
    from jinja2 import Environment

    # What is written for a terminal is set as a page sets it, and an error stays on its number's line.
    rows = [[cell.replace(" +- ", "\u00a0\u00b1\u00a0") for cell in row] for row in rows]
    notes = [line.replace(" +- ", " ± ") for line in notes]
    shown = {caption: _data_uri(data) for caption, data in (pictures or {}).items()}
    template = Environment(autoescape=True).from_string(_TEMPLATE)
    return template.render(title=title, headers=headers, rows=rows, lead=lead, notes=notes, card=card, pictures=shown)


def _data_uri(data: bytes) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "svg+xml"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
