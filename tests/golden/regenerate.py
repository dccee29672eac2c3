"""Rewrites tests/golden/presets/*.json from the table of presets; `make golden` runs it and CI diffs the result."""

from __future__ import annotations

from pathlib import Path

from training import presets

DIRECTORY = Path(__file__).parent / "presets"


def regenerate() -> None:
    """One file a preset; files of presets that are no more go away."""
    DIRECTORY.mkdir(exist_ok=True)
    for stale in {path.stem for path in DIRECTORY.glob("*.json")} - set(presets.names()):
        (DIRECTORY / f"{stale}.json").unlink()
    for name in presets.names():
        (DIRECTORY / f"{name}.json").write_text(presets.preset(name).to_json())


if __name__ == "__main__":
    regenerate()
