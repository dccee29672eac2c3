"""Names of the files that evaluation keeps in a run's directory. This module imports no torch, so the steps' clients can import it.

<run>/evaluations/step=NNNNNNNN.json  final.json  choice.json ...    <run>/samples/step=NNNNNNNN.png ...
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from training import storage

EVALUATIONS = "evaluations"
SAMPLES = "samples"
CHOICE = "choice.json"
REPLACED = ".before-"
"""Part of the name of a file whose evaluation was done again, before the id of the pipeline's run that did it."""
RESULT = "result.json"
"""The file that a finished training leaves in its run's directory."""
DELETING = "deleting.json"
"""The file that says that a run's or a sweep's directory is being deleted; it is the first to come and the last to go."""
# A run may have been copied since, so the last part of the URI alone counts.
_IMAGES = re.compile(rb'"images_uri": "[^"]*/(images-[^"/]+)/?"')


@dataclass(kw_only=True)
class TrainingFields:
    """Types of the fields of `RESULT`, and of the like ones of `CHOICE`, that name a model."""

    checkpoint_uri: str | None = None
    weights: str | None = None
    best_checkpoint_uri: str | None = None
    best_weights: str | None = None
    data_uri: str | None = None
    tracking_run_id: str | None = None
    step: int | None = None


def run_uri_of(checkpoint_uri: str) -> str:
    """Return the run's directory, which contains `checkpoints/step=NNNNNNNN`."""
    head, _, _ = checkpoint_uri.rstrip("/").rpartition("/")
    run_uri, slash, _ = head.rstrip("/").rpartition("/")
    return run_uri or slash or "."


def replaced_name(name: str, by: str) -> str:
    """Return what a file of an evaluation is called once that of another one has taken its place: "final.before-ID.json".

    Args:
        name: Its name, like "final.json".
        by: The pipeline's run that evaluated again.
    """
    stem, _, ending = name.rpartition(".")
    return f"{stem}{REPLACED}{by}.{ending}"


def kept_images(run_uri: str) -> set[str]:
    """Return the directories, with a slash at the end, of the images that results in the run's directory keep.

    They are those of a person, or of an ablation's two stages.
    """
    names = {uri: uri.rpartition("/")[2] for uri in storage.list_uris(storage.join(run_uri, EVALUATIONS))}
    # The scores of checkpoints, of which there may be many, keep none.
    results = [uri for uri, name in names.items() if name.endswith(".json") and not name.startswith("step=")]
    kept = {name.decode() for uri in results for name in _IMAGES.findall(storage.read_bytes(uri))}
    return {f"{storage.join(run_uri, SAMPLES, name)}/" for name in kept}


def result_uri(run_uri: str, name: str) -> str:
    """Return the file of the evaluation result of that name."""
    return storage.join(run_uri, EVALUATIONS, f"{name}.json")
