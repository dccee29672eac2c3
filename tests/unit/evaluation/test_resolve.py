"""Names of models that are directories. Names of MLflow are tested with its server, in the integration tests."""

from pathlib import Path

import pytest

from evaluation.records.run_directory import run_uri_of
from evaluation.selection.resolve import ResolvedModel, resolve_model
from training import storage
from training.checkpoints import checkpoint
from training.checkpoints.checkpoint import CheckpointError
from training.config.errors import UserError


def test_a_checkpoints_directory_is_resolved_with_its_runs_data_set_and_mlflow_run(run_uri: str) -> None:
    uri = checkpoint.checkpoint_uri(run_uri, 100)
    assert resolve_model(f"{uri}/") == ResolvedModel(checkpoint_uri=uri)
    storage.write_json(f"{run_uri}/result.json", {"data_uri": "s3://b/data", "tracking_run_id": "abc"})
    assert resolve_model(uri) == ResolvedModel(checkpoint_uri=uri, data_uri="s3://b/data", tracking_run_id="abc")


def test_a_runs_directory_resolves_to_the_chosen_weights(run_uri: str) -> None:
    assert resolve_model(run_uri).checkpoint_uri == checkpoint.checkpoint_uri(run_uri, 200), "the latest, while nothing is chosen"
    result = {
        "best_checkpoint_uri": checkpoint.checkpoint_uri(run_uri, 100),
        "best_weights": "ema_0.995",
        "data_uri": "d",
        "tracking_run_id": "t",
    }
    storage.write_json(f"{run_uri}/result.json", result)
    assert resolve_model(run_uri) == ResolvedModel(
        checkpoint_uri=checkpoint.checkpoint_uri(run_uri, 100), weights="ema_0.995", data_uri="d", tracking_run_id="t"
    )
    choice = {"checkpoint_uri": "s3://elsewhere/runs/x/checkpoints/step=00000200", "weights": "ema_0.99"}
    storage.write_json(f"{run_uri}/evaluations/choice.json", choice)
    found = resolve_model(run_uri)
    assert (found.checkpoint_uri, found.weights) == (checkpoint.checkpoint_uri(run_uri, 200), "ema_0.99"), "of a copied run, its own"
    assert found.spec("model").weights == "model"
    assert found.spec().weights == "ema_0.99"


def test_a_run_in_the_working_directory_is_found_by_its_own_name_and_by_that_of_its_checkpoint(
    run_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_json(f"{run_uri}/result.json", {"data_uri": "d"})
    monkeypatch.chdir(run_uri)
    for name, uri in ((".", "./checkpoints/step=00000200"), ("checkpoints/step=00000100/", "checkpoints/step=00000100")):
        found = resolve_model(name)
        assert found == ResolvedModel(checkpoint_uri=uri, data_uri="d")
        assert run_uri_of(found.checkpoint_uri) == "."


def test_a_run_in_a_directory_named_checkpoints_is_a_run(run_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("checkpoints").mkdir()
    Path(run_uri).rename("checkpoints/mine")
    for name in ("checkpoints/mine", str(tmp_path / "checkpoints/mine")):
        assert resolve_model(name).checkpoint_uri == f"{name}/checkpoints/step=00000200"


@pytest.mark.parametrize(
    ("uri", "run_uri"),
    [
        ("s3://b/runs/x/checkpoints/step=00000001/", "s3://b/runs/x"),
        ("x/checkpoints//step=00000001", "x"),
        ("./checkpoints/step=00000001", "."),
        ("checkpoints/step=00000001", "."),
        ("/checkpoints/step=00000001", "/"),
    ],
)
def test_the_run_of_a_checkpoint_is_two_levels_above_it(uri: str, run_uri: str) -> None:
    assert run_uri_of(uri) == run_uri


def test_the_error_about_an_unknown_name_lists_the_possible_forms(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run with a checkpoint there; name a checkpoint's directory.*models:/NAME@ALIAS"):
        resolve_model(str(tmp_path / "absent"))
    with pytest.raises(CheckpointError, match=r"there is no complete checkpoint .*; the run has none that is complete"):
        resolve_model(f"{tmp_path}/checkpoints/step=00000001")
    with pytest.raises(UserError, match="write models:/NAME@ALIAS or models:/NAME/VERSION"):
        resolve_model("models:/name/3@champion")


def test_a_directory_here_that_is_named_like_a_run_key_is_not_looked_for_in_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "birds-0123456789").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no run with a checkpoint there"):
        resolve_model("birds-0123456789")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("result.json", "[1]", r"is not a JSON object \(it begins with b'\[1\]'\); it is damaged"),
        (
            "result.json",
            '{"best_checkpoint_uri": 5, "best_weights": "model"}',
            "best_checkpoint_uri: Input should be a valid string, got 5; it is damaged",
        ),
        ("evaluations/choice.json", "3", r"is not a JSON object"),
        (
            "evaluations/choice.json",
            '{"checkpoint_uri": [], "weights": "model"}',
            r"checkpoint_uri: Input should be a valid string, got \[\]",
        ),
        ("checkpoints/step=00000200/complete.json", '{"files": {}}', "^[^:]*step=00000200: has no file 'experiment.json'"),
    ],
)
def test_a_file_of_another_shape_is_named(run_uri: str, name: str, text: str, said: str) -> None:
    storage.write_bytes(f"{run_uri}/{name}", text.encode())
    with pytest.raises((UserError, storage.StorageError), match=said) as raised:
        checkpoint.load_experiment(resolve_model(run_uri).checkpoint_uri)
    assert name.removesuffix("/complete.json") in str(raised.value)
