"""Clean up after pipelines' runs that have ended: `python -m components.reaper`, every few minutes, in the namespace of runs.

RayJobs come first, as they occupy GPUs, then MLflow runs, then messages to the webhook. If one of these fails, the others are done
all the same.
"""

from __future__ import annotations

import sys
import traceback

from components.cluster.connection import KubernetesError, current_namespace
from components.cluster.kubernetes_api import KubernetesApi
from components.reaper.messages import tell_webhook
from components.reaper.mlflow_runs import close_finished_runs, tag_failed_runs
from components.reaper.rayjobs import delete_finished_rayjobs
from training.config.errors import UserError
from training.console import say
from training.tracking.client import TrackingError


def main() -> int:
    """Clean up once; return 1 if the cluster or MLflow refused any of it, a setting is wrong, or a task failed otherwise."""
    code = 0
    try:
        api = KubernetesApi(current_namespace(), patience_seconds=60.0)
    except KubernetesError as error:
        say(str(error))
        return 1
    for clean_up in (delete_finished_rayjobs, close_finished_runs, tag_failed_runs, tell_webhook):
        try:
            clean_up(api)
        except (KubernetesError, TrackingError, UserError) as error:
            say(str(error))
            code = 1
        except Exception:  # one odd run must not keep the other tasks from their work
            traceback.print_exc()
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
