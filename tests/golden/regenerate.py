"""Rewrites what tests/golden holds of the presets and the compiled pipelines; `--check` only says what differs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pipelines.compile import PIPELINES, compiled
from training.config import presets

DIRECTORY = Path(__file__).parent


def golden_files() -> dict[Path, str]:
    """Each golden file's path, and what it should hold."""
    files = {DIRECTORY / "presets" / f"{name}.json": presets.preset(name).to_json() for name in presets.names()}
    return files | {DIRECTORY / "pipelines" / f"{name}.yaml": normalised(compiled(name)) for name in PIPELINES}


def normalised(text: str) -> str:
    """Compiled YAML without what changes from one release or environment to the next: image and SDK version."""
    from components.container.image import BASE_IMAGE

    text = text.replace(f"defaultValue: {BASE_IMAGE}", "defaultValue: IMAGE")
    return re.sub(r"sdkVersion: .*", "sdkVersion: SDK", text)


def main() -> int:
    """Writes the files, or with --check returns 1 where one differs."""
    files = golden_files()
    stored = {path for folder in ("presets", "pipelines") for path in (DIRECTORY / folder).glob("*.*")}
    stale = stored - set(files)
    differing = [path for path, text in files.items() if path not in stored or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in sorted([*differing, *stale]):
            print(
                f"{path.relative_to(DIRECTORY.parents[1])} is not what the code makes; if that is meant, run 'make golden'", file=sys.stderr
            )
        return 1 if differing or stale else 0
    for path in stale:
        path.unlink()
    for path in differing:
        path.parent.mkdir(exist_ok=True)
        path.write_text(files[path])
        print(f"rewrote {path.relative_to(DIRECTORY.parents[1])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
