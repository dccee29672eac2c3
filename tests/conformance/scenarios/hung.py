"""A training that stands still is told of once, with its name and for how long, and goes on and succeeds when it is let."""

import re

from conformance.cluster import Cluster, messages_about
from conformance.record import Claim, Record

_SIGNAL = """
import os, pathlib, signal
for path in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        words = (path / "cmdline").read_bytes()
    except OSError:
        continue
    if words.startswith(b"ray::RayTrainWorker"):
        os.kill(int(path.name), signal.NAME)
        print("NAME to a worker", flush=True)
"""


def drive(cluster: Cluster) -> None:
    """Stop the process of a training's worker, wait for the reaper, and let it go on."""
    cluster.start_webhook("hung", hung_minutes=2)
    run = cluster.submit(*cluster.lasting(120))
    pod = cluster.training(run, step=50)
    cluster.record.texts["stopped"] = cluster.execute(pod, _SIGNAL.replace("NAME", "SIGSTOP"))
    cluster.wait("the reaper has told of it", lambda: bool(messages_about(cluster.webhook_log(), run.run_id)), 600)
    cluster.last(150, "another reaper looks")
    cluster.record.texts["webhook"] = cluster.webhook_log()
    cluster.execute(pod, _SIGNAL.replace("NAME", "SIGCONT"))
    cluster.finish(run)


def judge(record: Record) -> list[Claim]:
    """Judge the message and the run."""
    return [
        record.says("its worker is stopped", "stopped", "SIGSTOP to a worker"),
        Claim("it is told once that the training makes no progress", *_told(record)),
        record.succeeded(),
        record.in_mlflow("MLflow has one finished run", "FINISHED"),
    ]


def _told(record: Record) -> tuple[bool | None, str]:
    if "webhook" not in record.texts:
        return None, "the webhook's log was not recorded"
    found = re.search(r"^run +(\S+)", record.texts.get("submit", ""), re.MULTILINE)
    lines = messages_about(record.texts["webhook"], found[1] if found else "")
    said = r'"event": "hung", "text": "iDDPM: conformance-\w+ has made no progress for [2-9] min'
    return len(lines) == 1 and re.search(said, lines[0]) is not None, f"{len(lines)} messages: {lines}"[:400]
