"""The page that lists the reports of a folder."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

SUMMARY = "summary.json"
_TEMPLATE = Path(__file__).with_name("gallery.html.jinja")


def write_gallery(folder: Path) -> Path:
    """Lists the reports of a folder's sub-folders, each with what it found; returns the page.

    Args:
        folder: Holds a folder for each ablation, with `report.html` and `summary.json`; made where it is missing.
    """
    from jinja2 import Environment, StrictUndefined

    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        _TEMPLATE.read_text()
    )
    entries = [_entry(path.parent.name, json.loads(path.read_text())) for path in folder.glob(f"*/{SUMMARY}")]
    entries.sort(key=lambda entry: (entry["order"], entry["folder"]))
    page = folder / "index.html"
    folder.mkdir(parents=True, exist_ok=True)
    page.write_text(template.render(entries=entries))
    return page


def _entry(folder: str, summary: dict[str, Any]) -> dict[str, Any]:
    verdicts = Counter(finding["verdict"] for finding in summary["findings"])
    return {**summary, "folder": folder, "verdicts": ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())}
