"""Batch score: a file of images against a file of reference statistics, to check published numbers or score others' samples.

Both may be the field's npz files: the ADM evaluator's sample batches (`arr_0`) and reference batches (`mu`, `sigma`,
`mu_s`, `sigma_s`, `arr_0`), EDM's and pytorch-fid's statistics, or ours. For a file that does not record the network and
the images of its statistics, the given extractor is assumed, and the result says so.

A file may be sorted by class. So each of its images has a position in a random order of a fixed seed (`npz.stream_with_positions`): the
jackknife leaves out images of neighbouring positions, and metrics that compare single images take those of the first positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.distances.frechet import frechet_distance
from evaluation.distances.metrics import need_real_images, parse_metrics, require_count, require_extractor
from evaluation.distances.reference_statistics import ReferenceStatistics, load_reference, moments_of, require_comparable
from evaluation.distances.sample_scorer import SampleScorer
from evaluation.features.extractors import ExtractorId, FeatureExtractor, distance_name, extractor_id, load_extractor
from evaluation.records import npz
from evaluation.records.devices import choose_device
from evaluation.records.intervals import JACKKNIFE
from evaluation.records.numbers import NONE, plain_estimate
from evaluation.records.protocol_card import features_row, versions, versions_row
from evaluation.reports.html import table_page
from evaluation.reports.study import Study, as_json
from training.config.errors import UserError
from training.config.experiment import Extractor
from training.console import say

BATCH_SIZE = 250


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchScore:
    """The score of a batch.

    Attributes:
        distance_name: "FID" in the standard Inception network's features, as far as the files record it.
        standard_error: Over the draw of the samples; None for statistics without images.
        num_samples: Images of the sample batch; None if unknown.
        metrics: Further measures by name, as `MetricValue.to_dict` gives them.
        reference: The origin of the reference, as far as the file records it.
        protocol: The card: files, number of samples, extractor, device and versions.
    """

    distance_name: str
    distance: float
    standard_error: float | None
    num_samples: int | None
    metrics: dict[str, Any]
    reference: str
    protocol: dict[str, Any]


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
        UserError: A file is damaged or of another format, the reference records another extractor, its images have another size than the
            samples, the statistics have another number of dimensions, or these files do not allow a measure.
    """
    here = choose_device(device)
    chosen = parse_metrics(metrics)
    if "label_agreement" in chosen:
        raise UserError("label_agreement needs samples of our own models; use 'iddpm evaluate'")
    with npz.open_npz(samples_uri) as file:
        has_images = "arr_0" in file.files
    if not has_images and chosen:
        raise UserError(f"{samples_uri} has no images (arr_0), only statistics; {', '.join(sorted(chosen))} need images")
    with npz.open_npz(reference_uri) as file:
        has_statistics, has_real_images = "mu" in file.files, "arr_0" in file.files
    # Once, as each look at a file in S3 downloads it. A file that has neither is refused here.
    real_shape = npz.batch_shape(reference_uri) if has_real_images or not has_statistics else ()
    identity = extractor_id(extractor) if isinstance(extractor, str) else extractor

    def network() -> FeatureExtractor:
        loaded = load_extractor(extractor, weights=extractor_weights, device=here) if isinstance(extractor, str) else extractor
        require_extractor(chosen, loaded)
        return loaded

    measured: dict[str, Any] = {"standard_error": None, "metrics": {}}
    if has_images:
        shape = npz.batch_shape(samples_uri)
        _require_same_size(samples_uri, shape, reference_uri, real_shape)
        num_images = shape[0]
        count: int | None = num_images
        stored = _read_reference(reference_uri, identity, shape) if has_statistics else None  # refused before weights are downloaded
        loaded = network()
        require_count(chosen, num_images, f"images in {samples_uri}", loaded.dim)
        reference, origin = stored or _compute_reference(reference_uri, real_shape[0], loaded, chosen)
        measured = _score_images(samples_uri, num_images, reference, loaded, chosen)
    else:
        sample = load_reference(samples_uri)
        if sample.provenance is not None:
            sample.require(extractor=identity, batch_shape=real_shape)
        if has_statistics:
            require_comparable(sample, load_reference(reference_uri))
            reference, origin = _read_reference(reference_uri, identity)
        else:
            loaded = network()
            _require_dim(sample, loaded)
            reference, origin = _compute_reference(reference_uri, real_shape[0], loaded, chosen)
        count = sample.features.num_images
        measured["distance"] = frechet_distance(reference.features, sample.features)
    card = {
        "samples": samples_uri,
        "num_samples": count,
        "reference": origin,
        "reference_file": reference_uri,
        "extractor": identity.name,
        "extractor_sha256": identity.sha256,
        "device": here,
        "versions": versions(),
    }
    name = distance_name(identity.name, identity.sha256)
    return BatchScore(distance_name=name, num_samples=count, reference=origin, protocol=card, **measured)


def _score_images(
    uri: str, num_images: int, reference: ReferenceStatistics, network: FeatureExtractor, metrics: frozenset[str]
) -> dict[str, Any]:
    _require_dim(reference, network)
    comparing = need_real_images(metrics)
    if comparing and not reference.images_uri:
        raise UserError(
            f"{reference.uri} has no images (arr_0): {', '.join(sorted(comparing))} compare single images; give an ADM reference batch"
        )
    if "sfid" in metrics and reference.spatial is None:
        raise UserError(
            f"{reference.uri} has no spatial statistics (mu_s, sigma_s), which the sFID needs; give a file that has them, or images"
        )
    scorer = SampleScorer(network, num_images, metrics)
    for positions, images in npz.stream_with_positions(uri, BATCH_SIZE):
        scorer.update(positions, images)
    real = npz.stream_with_positions(reference.images_uri, BATCH_SIZE) if comparing else None
    found = scorer.scores(reference, real)
    return {"distance": found.distance, "standard_error": found.standard_error, "metrics": found.metrics}


def _require_same_size(uri: str, shape: Sequence[int], reference_uri: str, real_shape: Sequence[int]) -> None:
    """Refuse images of another height, width or number of channels than the reference's images; `real_shape` is empty if it has none."""
    if real_shape and shape[1:] != real_shape[1:]:
        ours, real = ("x".join(map(str, each[1:])) for each in (shape, real_shape))
        raise UserError(
            f"{uri} has images of {ours} (height, width, channels), {reference_uri} of {real}; a distance is of images of one size: "
            "make the samples of the reference's size, or take the reference of theirs"
        )


def _require_dim(statistics: ReferenceStatistics, network: FeatureExtractor) -> None:
    """Refuse statistics that can't be of the network's features, before any image has passed through it."""
    if statistics.features.dim != network.dim:
        raise UserError(
            f"{statistics.uri} has statistics of {statistics.features.dim} dimensions, and {network.name} has {network.dim}: they are of "
            "another extractor; name it, or compute them with this one"
        )


def _compute_reference(uri: str, num_images: int, network: FeatureExtractor, metrics: frozenset[str]) -> tuple[ReferenceStatistics, str]:
    """Return the statistics of a file's images, and their origin in words."""
    require_count(need_real_images(metrics), num_images, f"images in {uri}")
    say(f"{uri} has images without statistics: computing the features of {num_images:,} images")
    moments, spatial = moments_of(npz.stream_images(uri, BATCH_SIZE), network)
    reference = ReferenceStatistics(
        features=moments.statistics(),
        spatial=spatial.statistics() if spatial is not None else None,
        provenance=None,
        uri=uri,
        images_uri=uri,
    )
    return reference, f"{moments.num_images:,} images of {uri}, features of {network.name}"


def _read_reference(uri: str, network: ExtractorId | FeatureExtractor, batch_shape: Sequence[int] = ()) -> tuple[ReferenceStatistics, str]:
    """Return the statistics of a file, and their origin in words; refuse statistics of images of another shape."""
    reference = load_reference(uri)
    if reference.provenance is None:
        assumed = f"does not record the images, network and resize of its statistics; they are assumed to be of {network.name}"
        return reference, f"{uri} {assumed}"
    provenance = reference.require(extractor=network, batch_shape=batch_shape)
    return reference, f"{provenance.num_images:,} {provenance.split} images of {provenance.data_name}, {provenance.extractor}"


def as_study(found: BatchScore) -> Study:
    """Return the measures and their card as a page, and the metrics for MLflow."""
    measured = {"distance": {"value": found.distance, "standard_error": found.standard_error}, **found.metrics}
    points: dict[tuple[str, int], float | int | None] = {}
    for name, item in measured.items():
        points |= {(name, 0): item["value"], (f"{name}_standard_error", 0): item["standard_error"]}
    card = found.protocol
    count = f"{found.num_samples:,} samples" if found.num_samples else "statistics of an unknown number of samples"
    rows = [(found.distance_name, f"{plain_estimate(found.distance, found.standard_error, digits=6)}  ({count})")]
    methods = [JACKKNIFE if found.standard_error is not None else NONE]
    for name, item in found.metrics.items():
        rows.append((name.replace("_", " "), f"{plain_estimate(item['value'], item['standard_error'], digits=6)}  ({item['note']})"))
        methods.append(item["method"] or NONE)
    page = table_page(
        f"{found.distance_name} of a batch",
        ["measure", "value", "error by"],
        [(*row, method) for row, method in zip(rows, methods, strict=True)],
        lead=[f"{card['samples']} against {card['reference_file']}"],
        card=[
            ("Samples", f"{count}, {card['samples']}"),
            ("Reference", f"{card['reference_file']}: {found.reference}"),
            features_row(card),
            (
                "Standard error",
                "over the draw of the samples; none for statistics without images. Blocks are random, whatever the file's order",
            ),
            versions_row(card),
            ("Device", card["device"]),
        ],
    )
    file_name = card["samples"].rstrip("/").rpartition("/")[2]
    return Study(
        kind="score-batch",
        title=f"{found.distance_name} of {file_name}",
        text="\n".join(f"{name:<18} {text}" for name, text in [*rows, ("reference", found.reference)]),
        models={file_name: card["samples"]},
        protocol=card,
        points=points,
        files={"score.html": page.encode(), "score.json": as_json(dataclasses.asdict(found))},
    )
