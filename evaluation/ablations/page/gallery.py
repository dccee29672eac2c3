"""The page that lists the reports of a folder, and their findings as a Markdown table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.reports import html
from training import storage

SUMMARY = "summary.json"
_TEMPLATE = Path(__file__).with_name("gallery.html.jinja")


@dataclass(kw_only=True)
class _StoredFinding:
    claim: str
    verdict: str
    evidence: str = ""


@dataclass(kw_only=True)
class StoredSummary:
    """Types of the fields of a stored summary, as far as readers need them."""

    findings: list[_StoredFinding]
    name: str
    order: int
    title: str = ""
    changes: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def write_gallery(folder: Path) -> Path:
    """List the reports of a folder with their findings, and return the page.

    Each ablation has a sub-folder with `report.html` and `summary.json`. The folder is created if it is missing.
    """
    page = folder / "index.html"
    storage.write_bytes(str(page), html.render(_TEMPLATE, entries=_entries(folder)).encode())
    return page


def findings_as_markdown(folder: Path) -> str:
    """Return every claim that the reports of a folder tested as a Markdown table: claim, verdict and evidence."""
    lines = ["| ablation | the paper's claim | here | evidence |", "|---|---|---|---|"]
    for entry in _entries(folder):
        name = f"`{entry['name']}`" + (f" with {', '.join(entry['changes'])}" if entry["changes"] else "")
        for finding in entry["findings"]:
            cells = (name, finding["claim"], finding["verdict"], finding["evidence"])
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _entries(folder: Path) -> list[dict[str, Any]]:
    entries = [_entry(path.parent.name, storage.read_json(str(path), StoredSummary)) for path in folder.glob(f"*/{SUMMARY}")]
    return sorted(entries, key=lambda entry: (entry["order"], entry["folder"]))


def _entry(folder: str, summary: dict[str, Any]) -> dict[str, Any]:
    verdicts = Counter(finding["verdict"] for finding in summary["findings"])
    return {"changes": [], **summary, "folder": folder, "verdicts": ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())}
