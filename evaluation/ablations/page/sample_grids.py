"""The sample grids of an ablation: one column a noise, one row a model or a number of steps."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from evaluation.ablations.trials.measures import read_images
from evaluation.ablations.trials.record import TrialRecord
from evaluation.records import grids, npz
from training import storage

_COLUMNS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleGrid:
    """A picture of samples.

    Attributes:
        png: The picture, as base64 of a PNG.
        caption: What its rows and columns are.
        wide: Whether it has names beside its rows, and needs the room.
    """

    png: str
    caption: str
    wide: bool = True


def sample_grids(records: Sequence[TrialRecord]) -> list[SampleGrid]:
    """Everything that the records have to show, nothing of what is gone."""
    done = [record for record in records if not record.error]
    found = [*_by_steps(done), *_same_noise(done), *_stages(done)]
    return found or _plain(done)


def _by_steps(records: Sequence[TrialRecord]) -> list[SampleGrid]:
    """Figures 8 to 19, in one picture a model and sampler."""
    found = []
    for record in records:
        for measure in ("sampling-steps", "figure-1"):
            for method, rows in ((record.measures.get(measure) or {}).get("grids") or {}).items():
                present = [row for row in rows if storage.exists(row["images_uri"])]
                if present:
                    images = torch.cat([read_images(row["images_uri"], _COLUMNS) for row in present])
                    names = [f"{row['num_steps']:,}" for row in present]
                    sampler = "DDIM" if method == "ddim" else f"the {method} sampler"
                    caption = f"{record.label}: rows are numbers of steps of {sampler}, a column is one noise."
                    found.append(_grid(images, names, caption))
    return found


def _same_noise(records: Sequence[TrialRecord]) -> list[SampleGrid]:
    """Figures 4, 20 and 21: each model's images from the same noise, one below the other."""
    found = []
    shown = [r for r in records if r.measures.get("samples") and storage.exists(r.measures["samples"]["images_uri"])]
    for shape in dict.fromkeys(_shape(record) for record in shown):
        rows = [record for record in shown if _shape(record) == shape]
        if len(rows) < 2:
            continue
        sets = [read_images(record.measures["samples"]["images_uri"], 3 * _COLUMNS) for record in rows]
        parts, names = [], []
        for first in range(0, min(map(len, sets)), _COLUMNS):
            for record, images in zip(rows, sets, strict=True):
                parts.append(images[first : first + _COLUMNS])
                names.append(record.role or record.label)
        models = ", ".join(record.role or record.label for record in rows)
        caption = f"The same noise in each column of {len(rows)} rows: {models}; {rows[0].measures['samples']['sampler']}."
        found.append(_grid(torch.cat(parts), names, caption))
    return found


def _shape(record: TrialRecord) -> tuple[str, int]:
    data = record.experiment["data"]
    return str(data["name"]), int(data["image_size"])


def _stages(records: Sequence[TrialRecord]) -> list[SampleGrid]:
    """Figure 2: the first stage's images above what the second stage makes of them."""
    found = []
    for record in records:
        stages = record.measures.get("stages")
        if not stages or not (storage.exists(stages["first_uri"]) and storage.exists(stages["second_uri"])):
            continue
        small, _ = npz.read_images(stages["first_uri"])
        large, _ = npz.read_images(stages["second_uri"])
        factor = large.shape[-1] // small.shape[-1]
        same_size = small.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
        parts, names = [], []
        for first in range(0, 3 * _COLUMNS, _COLUMNS):
            parts += [same_size[first : first + _COLUMNS], large[first : first + _COLUMNS]]
            names += [f"{small.shape[-1]} px", f"{large.shape[-1]} px"]
        caption = (
            "The first stage's samples (enlarged without smoothing), and below each what the second stage made of it (supplement figure 2)."
        )
        found.append(_grid(torch.cat(parts), names, caption))
    return found


def _plain(records: Sequence[TrialRecord]) -> list[SampleGrid]:
    """The grid of each trial's reported evaluation; all are drawn from the same noise, unless their seeds differ."""
    found = []
    seeds = {record.final["protocol"]["distance"]["seed"] for record in records if record.final}
    noise = ": the same noise in every grid." if len(seeds) == 1 else "."
    for record in records:
        uri = (record.final or {}).get("grid_uri", "")
        if uri and storage.exists(uri):
            png = base64.b64encode(storage.read_bytes(uri)).decode()
            found.append(SampleGrid(png=png, caption=f"{record.label}{noise}", wide=False))
    return found


def _grid(images: torch.Tensor, names: Sequence[str], caption: str) -> SampleGrid:
    pixels = grids.sample_grid(images, num_columns=_COLUMNS, row_names=names)
    return SampleGrid(png=base64.b64encode(grids.to_png(pixels)).decode(), caption=caption)
