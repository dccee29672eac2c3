"""Logs of a real cluster's pods."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

_RECORDING = Path(__file__).parents[1] / "recordings/texts/out_of_memory.json.gz"


def lines_about_memory() -> list[str]:
    """Return what the process that leads a training's workers wrote when Ray had killed it and them for the memory of their pod."""
    log = json.loads(gzip.decompress(_RECORDING.read_bytes()))["texts"]["log"]
    return re.findall(r"^\S+ \(TrainController pid=274\) ?(.*)$", log, re.MULTILINE)
