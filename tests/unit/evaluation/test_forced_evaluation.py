"""A forced evaluation sets the earlier one aside, deletes what an unfinished one left, and nothing of a person's own evaluations."""

from pathlib import Path

import pytest

from components.steps.evaluate import set_aside
from evaluation.evaluate.options import require_own_name
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


def test_a_persons_own_evaluations_keep_their_names_in_a_forced_evaluation(tmp_path: Path) -> None:
    run_uri = str(tmp_path / "run")
    own = ["final-50k", "final-bits-per-dim", "choice-a", "report-of-ada"]
    files = [f"{folder}/{name}.{ending}" for name in own for folder, ending in (("evaluations", "json"), ("samples", "png"))]
    files += ["evaluations/final-50k-bits-per-dim.npz", "evaluations/report-of-ada.html"]
    for name in own:
        require_own_name(name)
    finals = ["evaluations/final.json", "evaluations/final-bits-per-dim.npz", "evaluations/choice.json", "evaluations/report.html"]
    finals += ["samples/final.png", "evaluations/choose-00000100-ema_0.99.json", "samples/choose-00000100-ema_0.99.png"]
    for file in (*files, *finals):
        storage.write_bytes(f"{run_uri}/{file}", b"{}")
    set_aside(run_uri, "second")
    left = {uri.removeprefix(f"{run_uri}/") for uri in storage.list_uris(run_uri)}
    assert left == {*files, *(".before-second.".join(file.rsplit(".", 1)) for file in finals), "evaluations/forced-by-second"}


@pytest.mark.parametrize("num_deleted", range(5))
def test_a_result_names_its_own_files_also_where_setting_it_aside_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_deleted: int
) -> None:
    run_uri, deleted = str(tmp_path / "run"), []
    bits_uri, grid_uri = f"{run_uri}/evaluations/final-bits-per-dim.npz", f"{run_uri}/samples/final.png"
    for uri in (bits_uri, grid_uri, f"{run_uri}/evaluations/report.html", f"{run_uri}/evaluations/choice.json"):
        storage.write_bytes(uri, b"{}")
    storage.write_json(f"{run_uri}/evaluations/final.json", {"grid_uri": grid_uri, "likelihood": {"per_image_uri": bits_uri}})
    delete = storage.delete

    def delete_some(uri: str) -> None:
        if len(deleted) == num_deleted:
            raise KeyboardInterrupt
        deleted.append(uri)
        delete(uri)

    monkeypatch.setattr(storage, "delete", delete_some)
    with pytest.raises(KeyboardInterrupt):
        set_aside(run_uri, "second")
    monkeypatch.setattr(storage, "delete", delete)
    set_aside(run_uri, "second")
    assert storage.read_json(f"{run_uri}/evaluations/final.before-second.json") == {
        "grid_uri": f"{run_uri}/samples/final.before-second.png",
        "likelihood": {"per_image_uri": f"{run_uri}/evaluations/final-bits-per-dim.before-second.npz"},
    }
