"""The suite's results for a person on the screen, in BENCHMARKS.md, and as the speeds that `iddpm cost` reckons with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from machine import card_of
from measuring import Measured
from rows import GROUPS, Row, rows_of

from training.cost.accelerators import CARDS

_TITLES = {
    "roofline": "What the machine can do",
    "numerics": "Numerics beside the processor",
    "training": "Training step",
    "card": "What a training step gains on the card, and what it waits for",
    "data": "Data",
    "sampling": "Sampling",
    "quality": "Fewer network evaluations",
    "evaluation": "Evaluation",
    "checkpoints": "Checkpoints",
    "startup": "Start-up",
    "pipeline": "Local pipelines",
    "memory": "Memory",
    "scoring": "Scoring beside training",
    "scaling": "From one worker to two",
    "growth": "With many runs, trials, checkpoints and shards",
}


def found_of(row: Row, results: Mapping[str, Any]) -> Measured | None:
    """The row's number, if it was measured."""
    found = results["groups"].get(row.group, {}).get("rows", {}).get(row.key)
    return Measured(**found) if found else None


def number(value: float) -> str:
    """Three digits that tell something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def with_unit(value: float, unit: str) -> str:
    """A number and its unit, as one writes them: 2.1 times, and 2.1%."""
    return number(value) + (unit if unit == "%" else f" {unit}")


def spread(measured: Measured) -> str:
    """The range of the rounds, or nothing."""
    if measured.low is None or measured.high is None:
        return ""
    return f"{number(measured.low)} to {number(measured.high)}"


def on_screen(results: Mapping[str, Any], groups: Iterable[str], device: str) -> str:
    """A few lines a group."""
    lines = []
    for group in groups:
        told = results["groups"][group]
        lines.append(f"{_TITLES[group]} ({group}, {told['seconds']:.0f} s)")
        for row in rows_of((group,), device):
            measured = found_of(row, results)
            value = with_unit(measured.value, row.unit) if measured else ""
            verdict = row.verdict(measured, device)
            lines.append(f"  {row.what:<82} {value:>18}  {row.goal_words(device):<8} {verdict}".rstrip())
            beside = [
                f"against {row.against}" if row.against else "",
                f"rounds {spread(measured)}" if measured and spread(measured) else "",
                measured.note if measured else "",
                row.reason if verdict == "MISSED" else "",
            ]
            if any(beside):
                lines.append("      " + "; ".join(filter(None, beside)))
        if told["failure"]:
            lines.append(f"  FAILED: {told['failure']}")
    return "\n".join(lines) + "\n"


def summary(results: Mapping[str, Any], device: str) -> str:
    """The last line: goals met, missed, and groups that failed."""
    verdicts = [row.verdict(found_of(row, results), device) for row in rows_of(tuple(results["groups"]), device)]
    counts = {word: verdicts.count(word) for word in ("met", "MISSED", "FAILED")}
    seconds = sum(told["seconds"] for told in results["groups"].values())
    return f"{counts['met']} goals met, {counts['MISSED']} missed, {counts['FAILED']} rows failed; {seconds / 60:.1f} minutes"


_NO_CARD = "No card yet"


def markdown(text: str, results: Mapping[str, Any], device: str) -> str:
    """BENCHMARKS.md with the tables of this device put between their marks; those of a card replace its own and keep other cards'."""
    begin, end = f"<!-- {device} begins -->", f"<!-- {device} ends -->"
    if begin not in text or end not in text:
        raise ValueError(f"BENCHMARKS.md has no place for {device}: {begin} ... {end} is missing")
    body = "\n\n".join([_heading(results, device), *(_table(group, results, device) for group in GROUPS if rows_of((group,), device))])
    if device == "cuda":
        blocks = dict(_cards(text.partition(begin)[2].partition(end)[0]))
        blocks[card_of(results["machine"]) if results["groups"] else _NO_CARD] = body
        if len(blocks) > 1:
            blocks.pop(_NO_CARD, None)
        body = "\n\n".join(f"### {card}\n\n{block}" for card, block in blocks.items())
    return re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{body}\n{end}", text, flags=re.DOTALL)


def _cards(part: str) -> Iterator[tuple[str, str]]:
    """Yield each card's name, a heading of the third level, and what is below it."""
    _, *found = re.split("^### ", part, flags=re.MULTILINE)
    for block in found:
        card, _, below = block.partition("\n")
        yield card, below.strip()


def _heading(results: Mapping[str, Any], device: str) -> str:
    if not results["groups"]:
        if device == "cpu":
            return "Not measured yet; `make bench WRITE=1` does."
        return "Not measured yet; `make bench-gpu WRITE=1` does, in half an hour at most, and puts the tables of each card below its name."
    dates = sorted({told["date"] for told in results["groups"].values()})
    commits = list(dict.fromkeys(told["commit"] for told in results["groups"].values() if told["commit"]))
    machine = results["machine"]
    lines = [
        f"Measured {' and '.join(dates)} by `make bench{'-gpu' if device == 'cuda' else ''} WRITE=1`"
        + (f" at {', '.join(commits)}" if commits else "")
        + f", {sum(told['seconds'] for told in results['groups'].values()) / 60:.0f} minutes.",
        "",
        *(f"- {name}: {told}" for name, told in machine.items()),
        "",
        summary(results, device).rpartition(";")[0] + ".",
    ]
    missing = [group for group in GROUPS if rows_of((group,), device) and group not in results["groups"]]
    if missing:
        lines += ["", f"Groups that were not measured: {', '.join(f'`{group}`' for group in missing)}."]
    missed = [row for row in rows_of(GROUPS, device) if row.verdict(found_of(row, results), device) == "MISSED"]
    if missed:
        lines += ["", "Missed:", ""]
        for row in missed:
            measured = found_of(row, results)
            assert measured is not None
            reason = row.reason or "no reason is known"
            value = with_unit(measured.value, row.unit)
            lines.append(f"- {row.what}: {value}, goal {row.goal_words(device)}. {reason[0].upper()}{reason[1:]}.")
    return "\n".join(lines)


def _table(group: str, results: Mapping[str, Any], device: str) -> str:
    lines = [
        f"{'####' if device == 'cuda' else '###'} {_TITLES[group]}",
        "",
        f"    make bench{'-gpu' if device == 'cuda' else ''} GROUPS={group}",
        "",
        "| what | against | ours | rounds | goal | | seen |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows_of((group,), device):
        measured = found_of(row, results)
        cells = [
            row.what,
            row.against,
            with_unit(measured.value, row.unit) if measured else "",
            spread(measured) if measured else "",
            row.goal_words(device),
            row.verdict(measured, device) if group in results["groups"] else "",
            measured.note if measured else "",
        ]
        lines.append("| " + " | ".join(cells).replace("  ", " ") + " |")
    failure = results["groups"].get(group, {}).get("failure")
    if failure:
        lines += ["", f"Failed: {failure.partition(' (its output')[0]}."]
    return "\n".join(lines)


def calibrations(path: Path, results: Mapping[str, Any], device: str) -> None:
    """Puts the speeds of whole training steps and samplers into the file that `training.cost.estimate` reads.

    Other cards' stay, and where none was measured, so do this card's.
    """
    speeds: list[dict[str, Any]] = []
    for row in rows_of(GROUPS, device):
        measured = found_of(row, results)
        details = measured.details if measured else None
        if details and "forward_macs" in details:
            precision = "bf16" if "bf16" in row.key else "fp32"
            speeds.append(
                {
                    "what": row.what.removesuffix(f", {precision}"),
                    "phase": "training" if row.group == "training" else "sampling",
                    "precision": precision,
                    "forward_macs": details["forward_macs"],
                    "flops_per_second": float(f"{details['flops_per_second']:.4g}"),
                    "date": results["groups"][row.group]["date"],
                }
            )
    if not speeds:
        return
    kept = json.loads(path.read_text()) if path.exists() else {}
    card = "CPU"
    if device == "cuda":
        named = card_of(results["machine"])
        card = next((name for name in CARDS if name in named.replace("-", " ").split()), named)
    kept[card] = {"machine": results["machine"]["gpu" if device == "cuda" else "processor"], "speeds": speeds}
    path.write_text(json.dumps(kept, indent=2) + "\n")
