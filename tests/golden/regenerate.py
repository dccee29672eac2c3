"""Rewrites the golden files that are written by machine: each preset's JSON and each compiled pipeline's YAML.

python tests/golden/regenerate.py           rewrite them (`make golden`)
python tests/golden/regenerate.py --check   change nothing; name what differs and fail (`make golden-check`, CI)
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipelines import compile as compiler
from training import presets

HERE = Path(__file__).parent


def wanted() -> dict[Path, str]:
    """Every golden file and its content."""
    files = {HERE / "presets" / f"{name}.json": presets.preset(name).to_json() for name in presets.names()}
    return files | {HERE / "pipelines" / f"{name}.yaml": compiler.compiled(name) for name in compiler.PIPELINES}


def main(arguments: list[str]) -> int:
    """Rewrites or checks; the exit status is 1 where a check finds a difference."""
    files = wanted()
    present = {path for folder in ("presets", "pipelines") for path in (HERE / folder).glob("*.*")}
    stale = sorted(present - files.keys())
    changed = sorted(path for path, text in files.items() if path not in present or path.read_text() != text)
    for path in [*changed, *stale]:
        print(f"{path.relative_to(HERE.parent.parent)}: {'is not golden any more' if path in stale else 'differs'}")
    if arguments == ["--check"]:
        if changed or stale:
            print("If the change is wanted, run `make golden` and commit the difference.")
        return int(bool(changed or stale))
    for path in stale:
        path.unlink()
    for path in changed:
        path.parent.mkdir(exist_ok=True)
        path.write_text(files[path])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
