"""Find the images that manifests name, so that they can be copied to a site without internet."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from training.config.errors import UserError

_REFERENCE = re.compile(r"[\w.\-]+(:\d+)?(/[\w.\-]+)+(:[\w.\-]+|@sha256:[0-9a-f]{64})")


def read_manifests(source: str) -> list[dict[str, Any]]:
    """Read manifests: a folder is built by kubectl kustomize, "-" is standard input, anything else a file.

    Raises:
        UserError: There are none.
    """
    if source == "-":
        text = sys.stdin.read()
    elif Path(source).is_dir():
        try:
            built = subprocess.run(["kubectl", "kustomize", source], capture_output=True, text=True, check=False)
        except OSError:
            raise UserError("kubectl is not installed; install it, or pipe manifests to 'iddpm images -'") from None
        if built.returncode != 0:
            raise UserError(f"kubectl can't build {source}: {' '.join(built.stderr.split())[-300:]}")
        text = built.stdout
    else:
        try:
            text = Path(source).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"{source} can't be read ({error.strerror}); name a folder, a file, or - for a pipe") from None
        except UnicodeDecodeError:
            raise UserError(f"{source} can't be read (it is not text); name a folder, a file, or - for a pipe") from None
    shown = "standard input" if source == "-" else source
    try:
        found = [each for each in yaml.safe_load_all(text) if isinstance(each, dict) and "kind" in each]
    except yaml.YAMLError as error:
        raise UserError(f"{shown} is not YAML: {' '.join(str(error).split())[:200]}") from None
    if not found:
        raise UserError(f"{shown} has no manifests; did the command that writes them fail?")
    return found


def images_of(manifests: list[dict[str, Any]]) -> set[str]:
    """Return the images of all containers, and those that a controller is given to start: V2_LAUNCHER_IMAGE, --executor-image."""
    return {image for each in manifests for image in _images(each)}


def _images(thing: Any) -> Iterator[str]:
    if isinstance(thing, list):
        for option, value in zip(thing, [*thing[1:], None], strict=True):
            if option == "--executor-image" and isinstance(value, str):
                yield value
            yield from _images(option)
    elif isinstance(thing, dict):
        if isinstance(thing.get("image"), str) and ("name" in thing or _REFERENCE.fullmatch(thing["image"])):
            yield thing["image"]
        if str(thing.get("name", "")).endswith("_IMAGE") and isinstance(thing.get("value"), str):
            yield thing["value"]
        for value in thing.values():
            yield from _images(value)
