"""A finished run's model is served in the cluster, leaves it as a folder of diffusers, and comes back to draw the same images."""

import re

from conformance.cluster import Cluster
from conformance.record import Claim, Record

_NAME = "iddpm-conformance-model"
_PROGRAM = """
import hashlib, json, subprocess, sys, time, urllib.error, urllib.request
iddpm = [sys.executable, "-m", "pipelines.cli.main"]

def call(*words):
    done = subprocess.run([*iddpm, *words], capture_output=True, text=True)
    print("--- exit code", done.returncode, words[0], done.stdout, done.stderr, flush=True)

def get(path):
    try:
        return urllib.request.urlopen("http://127.0.0.1:8123" + path, timeout=120).read()
    except urllib.error.HTTPError as error:
        return error.read()

def serve(model):
    server = subprocess.Popen([*iddpm, "serve", model, "--port", "8123"])
    for _ in range(150):
        try:
            print("--- health", get("/health").decode(), flush=True)
            break
        except OSError:
            time.sleep(2)
    for _ in range(2):
        image = get("/samples.png?seed=3&num_images=2&evaluations=10")
        print("--- image", image[:4], hashlib.sha256(image).hexdigest(), flush=True)
    print("--- refused", get("/samples.png?seed=0&num_images=10000").decode(), flush=True)
    server.terminate()
    print("--- the service ended with", server.wait(60), flush=True)

serve({run!r})
call("export", {run!r}, {folder!r})
call("import-checkpoint", {folder!r}, {imported!r})
call("verify", {imported!r})
serve({imported!r})
print("--- end", flush=True)
"""


def drive(cluster: Cluster) -> None:
    """Train, then serve, export, import and serve again in a pod, as nothing outside the cluster may reach its S3."""
    run = cluster.submit()
    cluster.finish(run)
    (trained,) = cluster.mlflow_runs(run.run_id)
    directory = next(str(tag["value"]) for tag in trained["data"]["tags"] if tag["key"] == "iddpm.run_uri")
    root = cluster.settings.storage_root_uri
    program = _PROGRAM.format(run=directory, folder=f"{root}/exported/model", imported=f"{root}/runs/imported-0123456789")
    cluster.start_pod(_NAME, program, cpu="1", memory="2Gi")
    cluster.wait("the pod has ended", lambda: "--- end" in cluster.log(_NAME), 900)
    cluster.record.texts["pod"] = re.sub(r"(?m)^\S+Z ", "", cluster.log(_NAME))


def judge(record: Record) -> list[Claim]:
    """Judge what the pod printed."""
    said = record.texts.get("pod")
    images = None if said is None else re.findall(r"--- image b'\\x89PNG' (\w{64})", said)
    return [
        record.succeeded(),
        record.says("the service is well", "pod", r'(?s)--- health \{"status":"ok".*--- health \{"status":"ok"'),
        Claim(
            "one seed is one image, also after the return",
            None if images is None else len(images) == 4 and len(set(images)) == 1,
            str(images),
        ),
        record.says("too many images are refused", "pod", r'--- refused \{"detail":.*less than or equal to 16'),
        record.says("the service ends when it is told to", "pod", r"--- the service ended with (0|-15|143)\n"),
        record.says("the export is there", "pod", r'--- exit code 0 export [^-]*"folder_uri"'),
        record.says("it is imported", "pod", r'--- exit code 0 import-checkpoint [^-]*"checkpoint_uri"'),
        record.says("and undamaged", "pod", r"--- exit code 0 verify 0 damaged"),
    ]
