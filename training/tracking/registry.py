"""MLflow's model registry: the best checkpoint of a model, under a name and an alias that stay when checkpoints change."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training import storage
from training.console import say
from training.tracking.client import TrackingError, connect, none_if_missing, request, wait_for_mlflow

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "champion"
_TAGS = ("checkpoint_uri", "weights", "distance_name", "distance", "data_uri")
_PROTOCOL = "iddpm.protocol"


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisteredModel:
    """A version of a registered model.

    Attributes:
        name: The registered model: the preset, so that its variants compete.
        version: MLflow's number of the version; empty before it is registered.
        data_uri: Directory of its data set; distances to directories of other names are not compared, and empty fits any.
        distance_name: Name of its distance; distances of other names are not compared.
        distance: Its reported distance; smaller is better.
        protocol: How the distance was measured, as a JSON object; distances by other protocols are not compared, and empty fits any.
        description: Text that MLflow's page of the version shows, in Markdown. A text that somebody wrote there stays.
    """

    name: str
    version: str = ""
    run_id: str
    checkpoint_uri: str
    weights: str
    data_uri: str
    distance_name: str
    distance: float
    protocol: str = ""
    description: str = ""


def register(model: RegisteredModel, *, loader_module: str) -> RegisteredModel:
    """Register a checkpoint, or find it registered, and return it with its version; it becomes the champion if it is the best so far.

    A version that does not compete with the champion says why, once, when it is new: several steps register the same one.

    A version is a small directory that names the checkpoint, for `mlflow.pyfunc.load_model`: `<run>/mlflow/<step>-<weights>` in S3. If the
    run is on disk, the directory is among MLflow's artifacts, as an MLflow server refuses versions in a directory that it does not own.
    """
    client = connect()
    version, is_new = _find_or_create(client, model, loader_module)
    registered = _read(version)
    obstacle = _choose_champion(client, model, registered)
    if obstacle and is_new:
        say(obstacle)
    return registered


def _find_or_create(client: MlflowClient, model: RegisteredModel, loader_module: str) -> tuple[Any, bool]:
    """Return MLflow's version of a checkpoint, and True if this call has made it."""
    name = model.name
    tags = {f"iddpm.{key}": str(getattr(model, key)) for key in _TAGS}
    is_new = False

    def find_or_create() -> Any:
        nonlocal is_new
        if not client.search_registered_models(f"name = '{name}'"):
            _create(client, name)
        for version in client.search_model_versions(f"name = '{name}' and run_id = '{model.run_id}'"):
            if tags.items() <= version.tags.items() and version.tags.get(_PROTOCOL, model.protocol) == model.protocol:
                if model.protocol and _PROTOCOL not in version.tags:  # of an earlier version
                    client.set_model_version_tag(name, version.version, _PROTOCOL, model.protocol)
                    version = client.get_model_version(name, version.version)
                if not version.description and model.description:
                    client.update_model_version(name, version.version, model.description)
                return version
        source = _write_pyfunc(client, model, loader_module)
        all_tags = {**tags, _PROTOCOL: model.protocol} if model.protocol else tags
        is_new = True
        return client.create_model_version(name, source=source, run_id=model.run_id, tags=all_tags, description=model.description or None)

    version = request(find_or_create)
    return version, is_new


def _choose_champion(client: MlflowClient, model: RegisteredModel, registered: RegisteredModel) -> str:
    """Make the best version the champion; return why `registered`, the version of `model`, can't be compared with it, or an empty text."""
    name = model.name
    version = _by_alias(client, name)
    if version is not None and _missing_tags(version):
        return f"{name} version {version.version} stays the registry's champion: it was made by hand, and has no distance to compare with"
    champion = None if version is None else _read(version)
    if champion is not None and not _has_same_data(champion, model):
        return (
            f"{name} version {registered.version} does not compete with the registry's champion, version {champion.version}: its images "
            f"are {_data_name(model)}, the champion's {_data_name(champion)}; give its experiment another name, or set the alias by hand"
        )
    if champion is None or (_weights(champion) == _weights(model) and champion.version != registered.version):
        best = _best(client, registered)  # the champion itself was evaluated again: by its new distance another version may be better
    elif other := _other_protocol(champion, model):
        return (
            f"{name} version {registered.version} does not compete with the registry's champion, version {champion.version}: its distance "
            f"was measured by {other}; train and evaluate it as the champion, or set the alias by hand"
        )
    else:
        is_better = champion.distance_name == model.distance_name and model.distance < champion.distance
        best = registered if is_better else champion
    if champion is None or best.version != champion.version:
        request(lambda: client.set_registered_model_alias(name, CHAMPION, best.version))
        say(f"{name} version {best.version} is the registry's champion, at {best.distance_name} {best.distance:.4g}")
    return ""


def _create(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process made it at the same moment
            raise


def _write_pyfunc(client: MlflowClient, model: RegisteredModel, loader_module: str) -> str:
    """Write the directory that MLflow loads a model from, and return its URI."""
    from mlflow.pyfunc import save_model

    run_uri, _, step = model.checkpoint_uri.rstrip("/").rsplit("/", 2)
    path = f"mlflow/{step}-{model.weights}"
    with tempfile.TemporaryDirectory(prefix="iddpm-pyfunc-") as directory:
        spec, folder = Path(directory) / "model.json", Path(directory) / "model"
        spec.write_text(json.dumps({"checkpoint_uri": model.checkpoint_uri, "weights": model.weights}), encoding="utf-8")
        # No requirements: it needs this project, which no package index has. No signature: MLflow would ignore columns that are not in it.
        save_model(folder, loader_module=loader_module, data_path=str(spec), pip_requirements=[])
        if not storage.is_s3(run_uri):
            client.log_artifacts(model.run_id, str(folder), path)
            return f"runs:/{model.run_id}/{path}"
        for file in folder.rglob("*"):
            if file.is_file():
                storage.upload(file, storage.join(run_uri, path, str(file.relative_to(folder))))
    return storage.join(run_uri, path)


def resolve(name: str, alias: str = CHAMPION, *, version: str | None = None) -> RegisteredModel:
    """Return the version that an alias of a registered model points to, or the version of that number."""
    wait_for_mlflow()
    if version is not None:
        return _read(request(lambda: connect().get_model_version(name, version)))
    found = _by_alias(connect(), name, alias)
    if found is None:
        raise TrackingError(f"MLflow's registry has no model {name!r} with the alias {alias!r}; a finished train pipeline registers one")
    return _read(found)


def _best(client: MlflowClient, model: RegisteredModel) -> RegisteredModel:
    """Return the version with the smallest distance of the model's kind and data; of weights that were evaluated twice, the last counts."""
    versions = request(lambda: client.search_model_versions(f"name = '{model.name}'"))
    found = sorted((_read(version) for version in versions if not _missing_tags(version)), key=lambda each: int(each.version))
    rivals = [each for each in found if each.distance_name == model.distance_name and _has_same_data(each, model)]
    last = {_weights(each): each for each in rivals if not _other_protocol(each, model)} | {_weights(model): model}
    return min(last.values(), key=lambda each: each.distance)


def _weights(model: RegisteredModel) -> tuple[str, str]:
    return model.checkpoint_uri, model.weights


def _data_name(model: RegisteredModel) -> str:
    """Return the name of the data set's directory, which has its name and sizes; its root may have moved."""
    return model.data_uri.rstrip("/").rpartition("/")[2]


def _has_same_data(first: RegisteredModel, second: RegisteredModel) -> bool:
    return not first.data_uri or not second.data_uri or _data_name(first) == _data_name(second)


def _other_protocol(champion: RegisteredModel, model: RegisteredModel) -> str:
    """Return in what the protocols of two distances differ, "num_samples 4, the champion's 300"; empty if they can be compared."""
    if not champion.protocol or not model.protocol:
        return ""
    theirs, ours = json.loads(champion.protocol), json.loads(model.protocol)
    different = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    return "; ".join(f"{name} {ours.get(name)}, the champion's {theirs.get(name)}" for name in different)


def _by_alias(client: MlflowClient, name: str, alias: str = CHAMPION) -> Any:
    """Return MLflow's version that has the alias; None if there is none."""
    return request(lambda: none_if_missing(lambda: client.get_model_version_by_alias(name, alias)))


def _missing_tags(version: Any) -> list[str]:
    return [key for key in _TAGS if f"iddpm.{key}" not in version.tags]


def _read(version: Any) -> RegisteredModel:
    missing = _missing_tags(version)
    if missing:
        raise TrackingError(
            f"version {version.version} of the registered model {version.name!r} has no tag iddpm.{missing[0]}; was it made by hand?"
        )
    tags = {key: version.tags[f"iddpm.{key}"] for key in _TAGS}
    return RegisteredModel(
        name=version.name,
        version=str(version.version),
        run_id=version.run_id,
        protocol=version.tags.get(_PROTOCOL, ""),
        **{**tags, "distance": float(tags["distance"])},
    )
