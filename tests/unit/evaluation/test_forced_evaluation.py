"""A forced evaluation sets the earlier one aside, deletes what an unfinished one left, and no images that a result keeps."""

from pathlib import Path

from components.steps.evaluate import set_aside
from training import storage


def test_images_that_a_result_keeps_survive_a_forced_evaluation(tmp_path: Path) -> None:
    run_uri = str(tmp_path / "run")
    for name in ("mine", "stages", "half"):
        storage.write_bytes(f"{run_uri}/samples/images-{name}/images-00000.npz", b"images")
    storage.write_bytes(f"{run_uri}/evaluations/work-half/part", b"part")
    storage.write_json(f"{run_uri}/evaluations/final.json", {"distance": 1.0, "images_uri": ""})
    storage.write_json(f"{run_uri}/evaluations/mine.json", {"images_uri": f"{run_uri}/samples/images-mine"})
    storage.write_json(f"{run_uri}/evaluations/two-stage.json", {"images_uri": "s3://where/it/was/first/samples/images-stages"})
    storage.write_bytes(f"{run_uri}/evaluations/damaged.json", b"{")
    set_aside(run_uri, "second")
    kept = {uri.removeprefix(f"{run_uri}/") for uri in storage.list_uris(run_uri)}
    assert kept == {
        "evaluations/damaged.json",
        "evaluations/final.before-second.json",
        "evaluations/forced-by-second",
        "evaluations/mine.json",
        "evaluations/two-stage.json",
        "samples/images-mine/images-00000.npz",
        "samples/images-stages/images-00000.npz",
    }
