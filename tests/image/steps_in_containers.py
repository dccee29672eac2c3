"""Runs the train pipeline with each step in a container: `python steps_in_containers.py JOB.json`.

A process of its own, as kfp.local keeps process-wide state. The job says the image, the pipeline's arguments, where small
artifacts go, and how containers are run.
"""

import json
import os
import sys
from pathlib import Path

import yaml
from kfp import components, local

from pipelines.compile import load, local_specification

job = json.loads(Path(sys.argv[1]).read_text())
spec = local_specification(load("train"))
for executor in spec["deploymentSpec"]["executors"].values():
    executor["container"]["image"] = job["image"]  # kfp.local does not read it from the pipeline's parameter
os.umask(0)  # the steps' user is another than this process's, and writes into folders that this one makes
local.init(local.DockerRunner(**job["container"]), pipeline_root=job["pipeline_root"])
task = components.load_component_from_text(yaml.safe_dump(spec))(**job["arguments"])
Path(job["result_path"]).write_text(json.dumps({"run_uri": task.output, "num_steps": len(spec["deploymentSpec"]["executors"])}))
