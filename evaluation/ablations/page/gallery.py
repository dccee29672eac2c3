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
    entries = _entries(folder)
    page = folder / "index.html"
    folder.mkdir(parents=True, exist_ok=True)
    page.write_text(template.render(entries=entries))
    return page


def findings_as_markdown(folder: Path) -> str:
    """Every claim that the reports of a folder tested, as a table for a README: what the paper says, what was found, by which numbers."""
    lines = ["| ablation | the paper's claim | here | evidence |", "|---|---|---|---|"]
    for entry in _entries(folder):
        for finding in entry["findings"]:
            name = f"`{entry['name']}`" + (f" with {', '.join(entry['changes'])}" if entry["changes"] else "")
            cells = (name, finding["claim"], finding["verdict"], finding["evidence"])
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _entries(folder: Path) -> list[dict[str, Any]]:
    entries = [_entry(path.parent.name, json.loads(path.read_text())) for path in folder.glob(f"*/{SUMMARY}")]
    return sorted(entries, key=lambda entry: (entry["order"], entry["folder"]))


def _entry(folder: str, summary: dict[str, Any]) -> dict[str, Any]:
    verdicts = Counter(finding["verdict"] for finding in summary["findings"])
    return {"changes": [], **summary, "folder": folder, "verdicts": ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())}
