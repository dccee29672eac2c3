"""The reference step: statistics of real images, which generated images are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from components.launch.logs import LogPlace
from components.steps.runs import run_directory
from training import storage
from training.config.errors import UserError
from training.config.experiment import Experiment, Extractor
from training.console import say

if TYPE_CHECKING:
    from evaluation.sampling.trained_model import ModelSpec

REFERENCES = "references"
"""Directory of reference statistics below the storage root."""


def stored_extractor_weights(storage_root_uri: str, extractor: Extractor) -> str | None:
    """Return the URI of an extractor's weights below the storage root, `extractors/<file name>`; None if they are not there.

    A cluster without access to the internet keeps them there, once for all steps. Their sha256 is checked, so they are the
    same weights from every place.
    """
    from evaluation.features.extractors import weights_file

    file = weights_file(extractor)
    if file is None:
        return None
    uri = storage.join(storage_root_uri, "extractors", file.name)
    return uri if storage.exists(uri) else None


def reference_for(
    experiment: Experiment, data_uri: str, storage_root_uri: str, *, before_training: bool = False, models: Sequence[ModelSpec] = ()
) -> str:
    """Compute statistics of the training images with the experiment's extractor, or find them; return their URI.

    Args:
        before_training: Refuse metrics that the evaluation after the training could not compute.
        models: Models that will be evaluated with them; they are read before statistics are computed.

    Raises:
        UserError: The extractor, or the number of samples or of training images, is not enough for a metric.
        CheckpointError: One of the models can't be read.
    """
    from evaluation.distances.reference_statistics import compute_reference
    from evaluation.evaluate.preflight import require_metrics
    from evaluation.features.extractors import load_extractor
    from evaluation.records.devices import choose_device
    from evaluation.sampling.trained_model import require_readable

    name = experiment.evaluation.extractor
    extractor = load_extractor(name, weights=stored_extractor_weights(storage_root_uri, name), device=choose_device("auto"))
    if before_training:
        require_metrics(experiment, extractor, data_uri)
    directory = storage.join(storage_root_uri, REFERENCES)
    count = experiment.evaluation.num_reference_images
    return compute_reference(storage.join(data_uri, "train"), extractor, directory, count, before=lambda: require_readable(models)).uri


def planned_reference(experiment: Experiment, data_uri: str, storage_root_uri: str, *, before_training: bool = False) -> str:
    """Return what `reference_for` returns; where the statistics are there already, without loading the extractor's weights.

    For a small step, whose memory the largest extractors exceed.
    """
    from evaluation.distances.reference_statistics import find_reference
    from evaluation.evaluate.preflight import require_metrics
    from evaluation.features.extractors import extractor_id, extractor_traits

    evaluation, directory = experiment.evaluation, storage.join(storage_root_uri, REFERENCES)
    name = evaluation.extractor
    found = find_reference(storage.join(data_uri, "train"), extractor_id(name), directory, evaluation.num_reference_images)
    if found is None:
        return reference_for(experiment, data_uri, storage_root_uri, before_training=before_training)
    if before_training:
        require_metrics(experiment, extractor_traits(name), data_uri)
    return found.uri


def make_reference(experiment: str, data_uri: str, data_digest: str, storage_root_uri: str, resources: Mapping[str, Any]) -> str:
    """Do the reference step: `reference_for` with arguments that a pipeline can carry.

    It comes before the training, so it refuses metrics that the evaluation after the training could not compute.

    Args:
        experiment: The experiment, as JSON.
        data_digest: Digest of its training images, from the step that made it.
        resources: Fields of `training.config.experiment.Resources`.

    Raises:
        UserError: The images have another digest, or the extractor, or the number of samples or of training images, is not enough for a
            metric.
    """
    from training.data.format.manifest import read_manifest

    found = read_manifest(storage.join(data_uri, "train")).content_digest
    if found != data_digest:
        raise UserError(f"{data_uri} changed while the pipeline ran (digest {found}, expected {data_digest}); submit the pipeline again")
    return reference_for(Experiment.from_json(experiment), data_uri, storage_root_uri, before_training=True)


def find_log(arguments: Mapping[str, Any]) -> LogPlace:
    """Return the directory of the run that the statistics are made for, from the arguments of the step."""
    experiment = Experiment.from_json(arguments["experiment"])
    return LogPlace(run_directory(experiment, arguments["data_digest"], arguments["storage_root_uri"])[1])


def existing_reference(reference_uri: str, storage_root_uri: str, make: Callable[[], str]) -> str:
    """Return the URI of statistics that an earlier step gave; make them again if they were deleted.

    KFP's cache returns the URI of an earlier step, even if the file was deleted. Data set and extractor determine the
    statistics, so the new ones are the same.

    Args:
        reference_uri: The URI; empty where no statistics are used.
        make: Makes them, and returns their URI.

    Raises:
        UserError: They are gone, and were not made by this project.
    """
    if not reference_uri or storage.exists(reference_uri):
        return reference_uri
    if not reference_uri.startswith(storage.join(storage_root_uri, REFERENCES) + "/"):
        raise UserError(f"there are no reference statistics at {reference_uri}")
    say(f"{reference_uri} was deleted, which KFP's cache does not see; the statistics are computed again")
    return make()
