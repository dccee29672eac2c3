"""KFP's own button Retry goes on with a run that failed for want of its images, once they are there: the same run, closed in MLflow."""

from conformance.cluster import Cluster
from conformance.record import Claim, Record

_PUT_IMAGES = """
import io, boto3, zipfile
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
digits = load_digits()
file = io.BytesIO()
with zipfile.ZipFile(file, "w") as archive:
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target)):
        image = io.BytesIO()
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(image, "PNG")
        archive.writestr(f"{label}/{number:04d}.png", image.getvalue())
boto3.client("s3").put_object(Bucket="BUCKET", Key="KEY", Body=file.getvalue())
"""


def drive(cluster: Cluster) -> None:
    """Submit a run whose images are not there, put them there, and press Retry."""
    root = cluster.settings.storage_root_uri
    source = f"{root}/late/digits.zip"
    words = [f"data_source={source}", f"data_uri={root}/late/data", 'data_options={"num_test": 100}']
    run = cluster.submit(*(word for each in words for word in ("--param", each)))
    cluster.finish(run)
    bucket, _, key = source.removeprefix("s3://").partition("/")
    pod = "iddpm-conformance-images"
    cluster.start_pod(pod, _PUT_IMAGES.replace("BUCKET", bucket).replace("KEY", key))
    path = f"{cluster.path_of('pods')}/{pod}"
    cluster.wait("the images are there", lambda: (cluster.call("GET", path) or {})["status"]["phase"] == "Succeeded", 300)
    cluster.press_retry(run.run_id)
    cluster.wait("the Workflow runs again", lambda: (cluster.workflow(run.run_id) or {})["status"]["phase"] == "Running", 300)
    cluster.end_of(run.run_id)
    cluster.wait("KFP has seen its end", lambda: cluster.kfp_run(run.run_id).get("state") == "SUCCEEDED", 180)

    def is_closed() -> bool:
        return [each["info"]["status"] for each in cluster.mlflow_runs(run.run_id)] == ["FINISHED"]

    cluster.wait("the reaper has closed its run in MLflow", is_closed, 900)  # the exit task ran at the first end, and does not again


def judge(record: Record) -> list[Claim]:
    """Judge the run before and after."""
    phases = [state["status"].get("phase") for each in record.workflows for state in each["states"]]
    is_again = "Failed" in phases and "Running" in phases[phases.index("Failed") :]
    return [
        record.says("the run fails at first", "submit", r"failed at preprocess: .*digits\.zip"),
        Claim("the same run goes on", is_again and len(record.workflows) == 1, f"{len(record.workflows)} Workflows: {phases}"),
        record.succeeded(),
        record.in_mlflow("MLflow has one finished run", "FINISHED"),
    ]
