"""Batch score: a file of images against a file of reference statistics, to check published numbers or score others' samples.

Both may be the field's npz files: the ADM evaluator's sample batches (`arr_0`) and reference batches (`mu`, `sigma`,
`mu_s`, `sigma_s`, `arr_0`), EDM's and pytorch-fid's statistics, or ours. For a file that does not record the network and
the images of its statistics, the given extractor is assumed, and the result says so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from evaluation.distances.frechet import BlockedMoments, FeatureStatistics, frechet_distance, jackknife_error, leave_one_out_distances
from evaluation.distances.metric import MetricInputs, MetricValue
from evaluation.distances.metrics import (
    compute_metrics,
    extract_features,
    metric_inputs,
    metrics_to_dict,
    need_real_images,
    parse_metrics,
    require_count,
    require_extractor,
)
from evaluation.distances.reference_statistics import ReferenceStatistics, load_reference, moments_of, require_comparable
from evaluation.features.extractors import ExtractorId, FeatureExtractor, distance_name, extractor_id, load_extractor
from evaluation.records import npz
from evaluation.records.devices import choose_device
from evaluation.records.protocol_card import versions
from evaluation.reports.numbers import plain_estimate
from evaluation.reports.study import Study, as_json
from evaluation.reports.table_page import table_page
from training.config.errors import UserError
from training.config.experiment import Extractor
from training.console import say

BATCH_SIZE = 250


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchScore:
    """The score of a batch.

    Attributes:
        distance_name: "FID" in the standard Inception network's features, as far as the files record it.
        distance: The Frechet distance.
        standard_error: Over the draw of the samples; None for statistics without images.
        num_samples: Images of the sample batch; None if unknown.
        metrics: Further measures by name: value, standard_error, note.
        reference: The origin of the reference, as far as the file records it.
        protocol: The card: files, number of samples, extractor, device and versions.
    """

    distance_name: str
    distance: float
    standard_error: float | None
    num_samples: int | None
    metrics: dict[str, Any]
    reference: str
    protocol: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Reference:
    features: FeatureStatistics
    spatial: FeatureStatistics | None
    images_uri: str
    origin: str


def score_batch(
    samples_uri: str,
    reference_uri: str,
    *,
    extractor: Extractor | FeatureExtractor = "inception",
    extractor_weights: str | None = None,
    metrics: Sequence[str] = (),
    device: str = "auto",
) -> BatchScore:
    """Score the images, or the statistics, of one file against another.

    Args:
        samples_uri: A sample batch (`arr_0`), or statistics alone (`mu`, `sigma`), which allow the distance alone.
        reference_uri: Statistics, with or without images; or images alone, whose statistics are then computed.
        extractor: The feature extractor, by name or loaded.
        extractor_weights: Path or `s3://` URI of its weights.
        metrics: Further measures; see `evaluation.distances.metrics`.
        device: "auto", "cpu" or "cuda".

    Raises:
        UserError: A file is damaged or of another format, the reference records another extractor, the statistics have
            another number of dimensions, or these files do not allow a measure.
    """
    here = choose_device(device)
    found = _score(samples_uri, reference_uri, extractor, extractor_weights, metrics, here)
    network = extractor_id(extractor) if isinstance(extractor, str) else extractor
    card = {
        "samples": samples_uri,
        "num_samples": found.num_samples,
        "reference": found.reference,
        "reference_file": reference_uri,
        "extractor": network.name,
        "extractor_sha256": network.sha256,
        "device": here,
        "versions": versions(),
    }
    return dataclasses.replace(found, protocol=card)


def _score(
    samples_uri: str,
    reference_uri: str,
    extractor: Extractor | FeatureExtractor,
    extractor_weights: str | None,
    metrics: Sequence[str],
    device: str,
) -> BatchScore:
    chosen = parse_metrics(metrics)
    if "label_agreement" in chosen:
        raise UserError("label_agreement needs samples of our own models; use 'iddpm evaluate'")
    with npz.open_npz(samples_uri) as file:
        has_images = "arr_0" in file.files
    if not has_images and chosen:
        raise UserError(f"{samples_uri} has no images (arr_0), only statistics; {', '.join(sorted(chosen))} need images")
    with npz.open_npz(reference_uri) as file:
        has_statistics = "mu" in file.files
    if not has_images and has_statistics:
        known = extractor_id(extractor) if isinstance(extractor, str) else extractor
        statistics = load_reference(samples_uri)
        require_comparable(statistics, load_reference(reference_uri))
        return _score_statistics(statistics, _reference(reference_uri, known), known)
    if has_images:
        require_count(chosen, npz.count_images(samples_uri), f"images in {samples_uri}")
    network = load_extractor(extractor, weights=extractor_weights, device=device) if isinstance(extractor, str) else extractor
    require_extractor(chosen, network)
    if not has_statistics:
        require_count(chosen, npz.count_images(reference_uri), f"images in {reference_uri}")
    if not has_images:
        return _score_statistics(load_reference(samples_uri), _reference_of_images(reference_uri, network), network)
    reference = _reference(reference_uri, network) if has_statistics else _reference_of_images(reference_uri, network)
    _require_reference(chosen, reference, reference_uri)
    return _score_images(samples_uri, reference, network, metric_inputs(chosen), distance_name(network.name, network.sha256))


def _score_statistics(sample: ReferenceStatistics, reference: _Reference, network: ExtractorId | FeatureExtractor) -> BatchScore:
    if sample.provenance is not None:
        sample.require(extractor=network)
    return BatchScore(
        distance_name=distance_name(network.name, network.sha256),
        distance=frechet_distance(reference.features, sample.features),
        standard_error=None,
        num_samples=sample.features.num_images,
        metrics={},
        reference=reference.origin,
    )


def _score_images(uri: str, reference: _Reference, network: FeatureExtractor, inputs: MetricInputs, name: str) -> BatchScore:
    count = npz.count_images(uri)
    blocks = BlockedMoments(network.dim, count)
    first = 0
    for images in npz.stream_images(uri, BATCH_SIZE):
        outputs = network.outputs(images)
        blocks.update(torch.arange(first, first + len(images)), outputs["features"])
        inputs.update(outputs, None)
        first += len(images)
    real = None
    if need_real_images(inputs.metrics):
        real = extract_features(npz.stream_images(reference.images_uri, BATCH_SIZE), network)
    measured: list[MetricValue] = compute_metrics(inputs, reference_features=real, spatial=reference.spatial, is_inception=name == "FID")
    error = jackknife_error(leave_one_out_distances(reference.features, blocks))
    return BatchScore(
        distance_name=name,
        distance=frechet_distance(reference.features, blocks.total()),
        standard_error=error if math.isfinite(error) else None,
        num_samples=count,
        metrics=metrics_to_dict(measured),
        reference=reference.origin,
    )


def _reference_of_images(uri: str, network: FeatureExtractor) -> _Reference:
    say(f"{uri} has images without statistics: computing the features of {npz.count_images(uri):,} images")
    moments, spatial = moments_of(npz.stream_images(uri, BATCH_SIZE), network)
    return _Reference(
        features=moments.statistics(),
        spatial=spatial.statistics() if spatial is not None else None,
        images_uri=uri,
        origin=f"{moments.num_images:,} images of {uri}, features of {network.name}",
    )


def _reference(uri: str, network: ExtractorId | FeatureExtractor) -> _Reference:
    found = load_reference(uri)
    if found.provenance is not None:
        provenance = found.require(extractor=network)
        origin = f"{provenance.num_images:,} {provenance.split} images of {provenance.data_name}, {provenance.extractor}"
    else:
        origin = f"{uri} does not record the images, network and resize of its statistics; they are assumed to be of {network.name}"
    return _Reference(features=found.features, spatial=found.spatial, images_uri=found.images_uri, origin=origin)


def _require_reference(chosen: frozenset[Any], reference: _Reference, uri: str) -> None:
    if need_real_images(chosen) and not reference.images_uri:
        raise UserError(f"{uri} has no images (arr_0): KID and precision/recall compare single images; give an ADM reference batch")
    if "sfid" in chosen and reference.spatial is None:
        raise UserError(f"{uri} has no spatial statistics (mu_s, sigma_s), which the sFID needs; give a file that has them, or images")


def as_text(found: BatchScore) -> str:
    """Return one line for each measure, for a terminal."""
    return "\n".join(f"{name:<18} {text}" for name, text in [*_rows(found), ("reference", found.reference)])


def as_page(found: BatchScore) -> str:
    """Return the measures and their card as a page."""
    card = found.protocol
    return table_page(
        f"{found.distance_name} of a batch",
        ["measure", "value"],
        _rows(found),
        lead=[f"{card['samples']} against {card['reference_file']}"],
        card=[
            ("Samples", f"{_count(found)}, {card['samples']}"),
            ("Reference", f"{card['reference_file']}: {found.reference}"),
            ("Features", f"{card['extractor']}, weights sha256 {card['extractor_sha256'][:12]}"),
            ("Standard error", "delete-a-group jackknife over ten blocks of samples; none for statistics without images"),
            ("Versions", ", ".join(f"{name} {version}" for name, version in card["versions"].items())),
            ("Device", card["device"]),
        ],
    )


def as_study(found: BatchScore) -> Study:
    """Return the files, and the metrics for MLflow."""
    measured = {"distance": {"value": found.distance, "standard_error": found.standard_error}, **found.metrics}
    points: dict[tuple[str, int], float | int | None] = {}
    for name, item in measured.items():
        points |= {(name, 0): item["value"], (f"{name}_standard_error", 0): item["standard_error"]}
    samples_uri = found.protocol["samples"]
    name = samples_uri.rstrip("/").rpartition("/")[2]
    return Study(
        kind="score-batch",
        title=f"{found.distance_name} of {name}",
        text=as_text(found),
        models={name: samples_uri},
        protocol=found.protocol,
        points=points,
        files={"score.html": as_page(found).encode(), "score.json": as_json(dataclasses.asdict(found))},
    )


def _rows(found: BatchScore) -> list[tuple[str, str]]:
    rows = [(found.distance_name, f"{plain_estimate(found.distance, found.standard_error, digits=6)}  ({_count(found)})")]
    for name, item in found.metrics.items():
        rows.append((name.replace("_", " "), f"{plain_estimate(item['value'], item['standard_error'], digits=6)}  ({item['note']})"))
    return rows


def _count(found: BatchScore) -> str:
    return f"{found.num_samples:,} samples" if found.num_samples else "statistics of an unknown number of samples"
