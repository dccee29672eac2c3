"""Arguments of steps that several tests run for real."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.config.presets import preset


def preprocess_arguments(root: Path, overrides: Sequence[str] = (), **changes: Any) -> dict[str, Any]:
    """Arguments of the preprocess step on the digits; `root` is the storage root."""
    return {
        "experiment": preset("digits-hybrid-cosine", overrides).to_json(),
        "data_uri": "",
        "storage_root_uri": str(root),
        "source": "",
        "source_options": {},
        "options": {},
        "other_sizes": [],
        "resources": {"num_workers": 2},
        **changes,
    }
