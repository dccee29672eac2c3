"""The `experiment.json` of a run's directory and its like. This module imports no torch."""

from __future__ import annotations

from training import storage
from training.config.errors import UserError
from training.config.experiment import Experiment

WRONG_VERSION = "it is damaged or of another version, so check the address, or take the version of this program that wrote it"


def read_experiment(uri: str) -> Experiment:
    """Read an `experiment.json` beside the checkpoints, such as that of a run's directory; refuse another file by its name."""
    try:
        return Experiment.from_json(storage.read_bytes(uri))
    except UserError as error:
        raise UserError(f"{uri}: {error}; {WRONG_VERSION}") from error
