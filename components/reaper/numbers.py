"""Numbers of a pipeline's run that has succeeded, as its exit task tells them, for a message that it did not send."""

from __future__ import annotations

from typing import Any

from training.console import say
from training.storage.errors import StorageError
from training.tracking.client import TrackingError, answers
from training.tracking.references import ABLATION_URI_TAG, TUNING_URI_TAG
from training.tracking.runs import PIPELINE_RUN_TAG, RUN_URI_TAG, is_training, open_runs


class Numbers:
    """Finds the numbers of runs by the directories that MLflow names; asks no more once MLflow has not answered, as that costs 30 s."""

    def __init__(self) -> None:
        """Ask nothing yet."""
        self._is_away = False

    def of(self, pipeline_run_id: str) -> dict[str, Any]:
        """Return the numbers of a run; empty if there are none, or they can't be read."""
        try:
            return {} if self._is_away else _find(pipeline_run_id)
        except (StorageError, TrackingError) as error:
            self._is_away = isinstance(error, TrackingError) and not answers()
            say(f"{error}; the end of run {pipeline_run_id} is told without numbers")
            return {}


def _find(pipeline_run_id: str) -> dict[str, Any]:
    found = [run.tags for run in open_runs(PIPELINE_RUN_TAG, pipeline_run_id, status="")]
    # Imported here, as most reapers tell nothing and these take seconds.
    from components.ablations.close import ablation_numbers
    from components.steps.run_messages import training_numbers
    from components.tuning.report import tuning_numbers

    for tag, read in ((ABLATION_URI_TAG, ablation_numbers), (TUNING_URI_TAG, tuning_numbers)):
        for tags in found:
            if uri := tags.get(tag):
                return read(uri)
    trainings = [tags[RUN_URI_TAG] for tags in found if is_training(tags)]
    return training_numbers(trainings[0]) if len(trainings) == 1 else {}
