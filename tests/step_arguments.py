"""Arguments of steps that several tests run for real."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def preprocess_arguments(root: Path, **changes: Any) -> dict[str, Any]:
    """Of the preprocess step on the digits, whose storage root is that folder."""
    return {
        "experiment_preset": "digits-hybrid-cosine",
        "experiment_overrides": [],
        "data_uri": "",
        "storage_root_uri": str(root),
        "source": "",
        "source_options": {},
        "options": {},
        "other_sizes": [],
        "resources": {"num_workers": 2},
        **changes,
    }
