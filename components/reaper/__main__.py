"""Clears away what outlived the run of a pipeline: `python -m components.reaper`, every few minutes, in the namespace of runs.

RayJobs first, which hold GPUs, then runs in MLflow, on which nobody works any more. Where one can't be done, the other is.
"""

from __future__ import annotations

import sys

from components.cluster.kubernetes_api import KubernetesApi, KubernetesError, current_namespace
from components.reaper.mlflow_runs import close_left_behind
from components.reaper.rayjobs import reap
from training.console import say
from training.tracking.client import TrackingError


def main() -> int:
    """Does it once; the exit code says whether the cluster and MLflow let it."""
    code = 0
    try:
        api = KubernetesApi(current_namespace(), patience_seconds=60.0)
    except KubernetesError as error:
        say(str(error))
        return 1
    for work in (reap, close_left_behind):
        try:
            work(api)
        except (KubernetesError, TrackingError) as error:
            say(str(error))
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
