"""Memorisation of one model: copies of training images among its samples, in pixels and in features, with the nearest pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.features.extractors import load_extractor
from evaluation.memorisation.copied_share import FALSE_ALARM_RATE, CopiedShare
from evaluation.memorisation.nearest import MAX_NEIGHBOURS, feature_space, pixel_space
from evaluation.memorisation.search import MAX_IMAGES, Memorisation, Pair, find_copies, obstacle
from evaluation.records import grids, npz
from evaluation.records.devices import choose_device
from evaluation.records.protocol_card import describe_sampling, features_row, versions, versions_row
from evaluation.reports.html import table_page, text_table
from evaluation.reports.study import Study, as_json
from evaluation.sampling.generate import concatenated, generate
from evaluation.sampling.trained_model import ModelSpec, TrainedModel
from training import storage
from training.config.errors import UserError
from training.config.experiment import SamplingConfig, require_seed
from training.console import say
from training.data.loading.row_groups import RowReader

_READ_BATCH = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A search for copies among the samples of one model.

    Attributes:
        data_uri: The data set that the model was trained on, with `train` and `test` splits.
        samples_uri: npz of images of the model (`evaluation.records.npz`); empty draws them.
        num_samples: Images to draw, or to use of the file; at most `MAX_IMAGES` are used.
        extractor, extractor_weights: See `evaluation.features.extractors.load_extractor`; empty takes the experiment's.
        false_alarm_rate: See `evaluation.memorisation.search.find_copies`.
        batch_size: Images per batch of the sampler; 0 takes the default for this image size.
    """

    model: ModelSpec
    data_uri: str
    samples_uri: str = ""
    num_samples: int = 1000
    seed: int = 0
    sampling: SamplingConfig
    extractor: str = ""
    extractor_weights: str = ""
    false_alarm_rate: float = FALSE_ALARM_RATE
    batch_size: int = 0
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class MemorisationStudy:
    """The searches in pixels and in features; `pictures` are PNG files of the nearest pairs by caption, `card` says how it was done."""

    model: str
    searches: tuple[Memorisation, ...]
    pictures: dict[str, bytes]
    card: dict[str, Any]


def study_memorisation(request: Request) -> MemorisationStudy:
    """Search the training set for copies among a model's samples.

    Raises:
        UserError: The data set has no test images, the samples do not fit it, the extractor can't be loaded, the model enlarges
            training images, or no experiment can have the seed.
        CheckpointError: There is no such checkpoint.
    """
    require_seed(request.seed)
    device = choose_device(request.device)
    model = request.model.load(device)
    if reason := obstacle(request.data_uri):
        raise UserError(f"memorisation can't be judged: {reason}")
    extractor = load_extractor(
        request.extractor or model.experiment.evaluation.extractor,  # type: ignore[arg-type]  # load_extractor refuses other words
        weights=request.extractor_weights or None,
        device=device,
    )
    samples, origin = _samples(request, model)
    training = RowReader(storage.join(request.data_uri, "train"))
    searches, pictures = [], {}
    for space in (pixel_space(device), feature_space(extractor)):
        say(f"searching {training.manifest.num_images:,} training images in {space.name}")
        found = find_copies(samples, request.data_uri, space, false_alarm_rate=request.false_alarm_rate)
        searches.append(found)
        images = torch.stack([samples[pair.image] for pair in found.sample_pairs])
        pictures[f"Samples, and below each its nearest training image in {space.name}. Numbers are relative distances."] = _picture(
            images, found.sample_pairs, training, "sample"
        )
        own = _rows(training, (pair.image for pair in found.duplicate_pairs))
        pictures[f"Training images, and below each the other training image that is nearest in {space.name}."] = _picture(
            own, found.duplicate_pairs, training, "training"
        )
    card = {
        "data": request.data_uri,
        "data_digest": training.manifest.content_digest,
        "num_training": training.manifest.num_images,
        "samples": origin,
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "false_alarm_rate": request.false_alarm_rate,
        "max_images": MAX_IMAGES,
        "device": device,
        "versions": versions(),
    }
    return MemorisationStudy(model=model.description, searches=tuple(searches), pictures=pictures, card=card)


def _samples(request: Request, model: TrainedModel) -> tuple[Tensor, str]:
    """Return the samples, and their origin in words."""
    if request.samples_uri:
        kept: list[tuple[Tensor, Tensor]] = []
        for positions, images in npz.stream_with_positions(request.samples_uri, _READ_BATCH):  # its first images may be of few classes
            is_kept = positions < request.num_samples
            kept.append((positions[is_kept], images[is_kept]))
        order = torch.cat([positions for positions, _ in kept]).argsort()
        found = torch.cat([images for _, images in kept])[order]
        return found, f"{len(found):,} images of {request.samples_uri}, chosen at random by a fixed seed"
    if model.low_res_size is not None:
        raise UserError(
            f"{model.description} enlarges training images, so its samples are near them; enlarge other images "
            "(`sample --low-res --npz`), and give them by --samples"
        )
    say(f"drawing {request.num_samples:,} images")
    drawn = generate(model, num_images=request.num_samples, seed=request.seed, sampling=request.sampling, batch_size=request.batch_size)
    sampler = describe_sampling(request.sampling, model.experiment.diffusion.num_timesteps)
    return concatenated(drawn)[0], f"{request.num_samples:,}, {sampler}, seed {request.seed}"


def _rows(training: RowReader, rows: Iterable[int]) -> Tensor:
    return training.rows(np.array(list(rows), dtype=np.int64))[1]


def _picture(images: Tensor, pairs: Sequence[Pair], training: RowReader, name: str) -> bytes:
    """Draw the images above their nearest training images, with the relative distance of each pair."""
    nearest = _rows(training, (pair.training_row for pair in pairs))
    columns = [f"{pair.ratio:.2f}" for pair in pairs]
    pixels = grids.sample_grid(torch.cat([images, nearest]), num_columns=len(pairs), row_names=[name, "nearest"], column_names=columns)
    return grids.to_png(pixels)


def verdict(found: Memorisation) -> str:
    """Say in a sentence whether copies of training images were found among the samples."""
    share = found.samples
    if share.is_found:
        return f"In {found.space}, copies of training images are {share} of the samples."
    if share.interval[1] >= 0.5:
        return f"In {found.space}, it can't be told whether there are copies: {share}."
    return (
        f"In {found.space}, no more samples are near training images than held-out images are; copies are at most {share.interval[1]:.1%}."
    )


def as_study(found: MemorisationStudy) -> Study:
    """Return the table, the pairs and the metrics for MLflow: `copied_share/pixels` and the like."""
    headers = ["compared in", "images", "flagged", "copies", "95% interval", "false alarms", "recall"]
    rows = []
    for search in found.searches:  # near-duplicates in the training set come first, as they explain others
        rows.append(_row(f"{search.space}: training set, other images of it", search.duplicates))
        rows.append(_row(f"{search.space}: samples", search.samples))
    verdicts = [verdict(search) for search in found.searches]
    recalls = [
        f"Recall in {search.space}: {', '.join(f'{kind} {rate:.0%}' for kind, rate in search.recall.items())}." for search in found.searches
    ]
    held_out = found.searches[0].samples
    num_nearest = min(MAX_NEIGHBOURS, found.searches[0].num_training - 1)
    notes = [
        "The relative distance of an image: to its nearest training image, over the mean distance to the nearest "
        f"{num_nearest}. Images are flagged below a threshold that {held_out.false_alarm_rate:.2%} of {held_out.num_held_out:,} held-out "
        "images are below. Copies are the flagged share, corrected for false alarms and for the recall on artificial copies.",
        *recalls,
    ]
    points: dict[tuple[str, int], float | int | None] = {}
    for name, search in zip(("pixels", "features"), found.searches, strict=True):
        for measure, share in (("copied_share", search.samples), ("duplicated_share", search.duplicates)):
            points |= {
                (f"{measure}/{name}", 0): share.share,
                (f"{measure}_low/{name}", 0): share.interval[0],
                (f"{measure}_high/{name}", 0): share.interval[1],
            }
    card = found.card
    page = table_page(
        "Copies of training images",
        headers,
        rows,
        lead=[found.model, *verdicts],
        notes=notes,
        pictures=found.pictures,
        card=[
            ("Samples", card["samples"]),
            ("Data set", f"{card['data']}: {card['num_training']:,} training images, digest {card['data_digest'][:12]}"),
            features_row(card),
            ("Interval", "2.5 and 97.5% quantiles over draws of the rates of flagged images, false alarms and recall"),
            ("Sources", "relative distance: Carlini et al. 2023; correction: Rogan and Gladen 1978; false alarms: Vovk 2012"),
            versions_row(card),
            ("Device", card["device"]),
        ],
    )
    return Study(
        kind="memorisation",
        title=f"Memorisation: {found.model}",
        text="\n".join([*text_table(headers, rows), "", *verdicts, "", *notes]),
        models={"model": found.model},
        protocol=card,
        points=points,
        files={
            "memorisation.html": page.encode(),
            "memorisation.json": as_json(
                {"model": found.model, "searches": [search.to_dict() for search in found.searches], "protocol": card}
            ),
        },
    )


def _row(name: str, share: CopiedShare) -> list[str]:
    low, high = share.interval
    return [
        name,
        f"{share.num_images:,}",
        f"{share.num_flagged:,}",
        f"{share.share:.1%}",
        f"{low:.1%} to {high:.1%}",
        f"{share.false_alarm_rate:.2%}",
        f"{share.recall:.0%}",
    ]
