"""The job of `iddpm-gc` deletes a training that was given up; a finished one and a running one stay undamaged."""

import json
import re

from conformance.cluster import Cluster
from conformance.record import Claim, Record

_NAME = "iddpm-conformance-gc"
_PROGRAM = """
import subprocess, sys
for words in {commands!r}:
    done = subprocess.run([sys.executable, "-m", "pipelines.cli.main", *words], capture_output=True, text=True)
    print("--- exit code", done.returncode, *words[:1], done.stdout, done.stderr, flush=True)
print("--- end", flush=True)
"""


def drive(cluster: Cluster) -> None:
    """Train two models and give one up, look at the bucket while a third trains, let the CronJob's job delete, and verify the others."""
    root = cluster.settings.storage_root_uri
    kept, given_up = (_trained(cluster) for _ in range(2))
    for run in cluster.mlflow_runs(cluster.run_ids[1]):
        _give_up(cluster, run["info"]["run_id"])
    live = cluster.submit(*cluster.lasting(300))
    cluster.training(live, step=50)
    running = _directory(cluster, live.run_id)

    look = ["gc", root, "--days", "0", "--grace-hours", "0", "--json"]
    cluster.record.texts["look"] = _in_a_pod(cluster, "look", [look])
    cluster.record.texts["job"] = _job(cluster, root)
    cluster.finish(live)
    commands = [["verify", kept], ["verify", running], ["verify", given_up]]
    cluster.record.texts["verify"] = _in_a_pod(cluster, "verify", commands)
    cluster.record.texts["directories"] = json.dumps({"kept": kept, "given up": given_up, "running": running})


def _trained(cluster: Cluster) -> str:
    run = cluster.submit()
    cluster.finish(run)
    return _directory(cluster, run.run_id)


def _give_up(cluster: Cluster, tracking_run_id: str) -> None:
    """Delete a run in MLflow, and its model in the registry, which would keep the run's directory."""
    found = cluster.mlflow(f"model-versions/search?filter=run_id%3D%27{tracking_run_id}%27")
    for version in found.get("model_versions", []):
        cluster.mlflow("model-versions/delete", {"name": version["name"], "version": version["version"]}, method="DELETE")
    cluster.mlflow("runs/delete", {"run_id": tracking_run_id})


def _directory(cluster: Cluster, run_id: str) -> str:
    (run,) = cluster.mlflow_runs(run_id)
    return next(str(tag["value"]) for tag in run["data"]["tags"] if tag["key"] == "iddpm.run_uri")


def _in_a_pod(cluster: Cluster, name: str, commands: list[list[str]]) -> str:
    """Run commands where S3 can be reached, and return what they printed."""
    pod = f"{_NAME}-{name}"
    cluster.start_pod(pod, _PROGRAM.format(commands=commands))
    cluster.wait(f"{name} has ended", lambda: "--- end" in cluster.log(pod), 600)
    return _without_times(cluster.log(pod))


def _without_times(log: str) -> str:
    return re.sub(r"(?m)^\S+Z ", "", log)


def _job(cluster: Cluster, root: str) -> str:
    """Run the CronJob's job once, as it is but for the storage root and a policy without waiting, and return its log."""
    cronjob = cluster.call("GET", f"{cluster.path_of('cronjobs')}/iddpm-gc")
    assert cronjob is not None, "k8s/base/runs/gc.yaml is not applied"
    spec = cronjob["spec"]["jobTemplate"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    given = {"GC_ROOT": root, "GC_DAYS": "0", "GC_GRACE_HOURS": "0"}
    rest = [each for each in container["env"] if each["name"] not in given]
    container["env"] = [*({"name": name, "value": value} for name, value in given.items()), *rest]
    path = f"{cluster.path_of('jobs')}/{_NAME}"
    cluster.undo.callback(cluster.call, "DELETE", path, {"propagationPolicy": "Background"})
    cluster.call("POST", cluster.path_of("jobs"), {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": _NAME}, "spec": spec})

    def ended() -> str:
        conditions = ((cluster.call("GET", path) or {}).get("status") or {}).get("conditions") or []
        return next((each["type"] for each in conditions if each["type"] in ("Complete", "Failed")), "")

    end = cluster.wait("the job has ended", ended, 900)
    (pod,) = cluster.items(cluster.path_of("pods"), labelSelector=f"batch.kubernetes.io/job-name={_NAME}")
    return f"{_without_times(cluster.log(pod['metadata']['name'], 'gc'))}\nthe job's end: {end}"


def judge(record: Record) -> list[Claim]:
    """Judge the look, the job, and what it left."""
    names = {key: f"runs/{uri.rpartition('/')[2]}" for key, uri in json.loads(record.texts.get("directories", "{}")).items()}
    kept, given_up, running = (names.get(key, "not recorded") for key in ("kept", "given up", "running"))
    look = record.texts.get("look")
    proposed = None if look is None else set(json.loads(look[look.index("{") : look.rindex("}") + 1])["deletable"])
    return [
        record.succeeded(0),
        Claim("a look proposes the given up run", None if proposed is None else given_up in proposed, str(proposed)),
        Claim("and not the finished one", None if proposed is None else kept not in proposed, str(proposed)),
        Claim("and nothing of the running one", None if proposed is None else not any(running in each for each in proposed), str(proposed)),
        record.says("the CronJob's job ends well", "job", r"the job's end: Complete\Z"),
        record.says("it deletes the given up run", "job", rf"\n{given_up} .* deleted "),
        record.succeeded(2),
        record.says("the kept run is undamaged", "verify", r"\A--- exit code 0 verify 0 damaged"),
        record.says("so is the one that was training", "verify", r"(?s)verify.*--- exit code 0 verify 0 damaged"),
        record.says("of the given up run nothing is there", "verify", r"(?s).*--- exit code [1-9]\d* verify .*--- end"),
    ]
