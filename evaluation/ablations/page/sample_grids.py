"""The sample grids of an ablation: all images of a column start from the same noise; a row is a model or a number of steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from evaluation.ablations.trials.measures import read_images
from evaluation.ablations.trials.record import AblationTrial, split_by_seed
from evaluation.records import grids
from evaluation.reports.html import data_uri
from training import storage

_COLUMNS = 10
_BLOCKS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleGrid:
    """A picture of samples, as a data URI; the caption says what its rows and columns are. It is wide if it has row names."""

    address: str
    caption: str
    wide: bool = True


def sample_grids(records: Sequence[AblationTrial]) -> list[SampleGrid]:
    """Return the grids of all images that the records name and that still exist; of repeated seeds, those of the first finished one."""
    done = next(iter(split_by_seed(record for record in records if not record.error).values()), [])
    return [*_by_steps(done), *_same_noise(done), *_stages(done)] or list(_reported(done))


def _by_steps(records: Sequence[AblationTrial]) -> Iterator[SampleGrid]:
    """One grid for each model and sampler (supplement figures 8 to 19)."""
    for record in records:
        for measure in ("sampling-steps", "figure-1"):
            for method, rows in ((record.measures.get(measure) or {}).get("grids") or {}).items():
                present = [row for row in rows if storage.exists(row["images_uri"])]
                if present:
                    sampler = "DDIM" if method == "ddim" else f"the {method} sampler"
                    yield _grid(
                        [read_images(row["images_uri"], _COLUMNS) for row in present],
                        [f"{row['num_steps']:,}" for row in present],
                        f"{record.label}: rows are numbers of steps of {sampler}, a column is one noise.",
                    )


def _same_noise(records: Sequence[AblationTrial]) -> Iterator[SampleGrid]:
    """Each model's images from the same noise, in alternating rows (supplement figures 4, 20 and 21)."""
    shown = [r for r in records if r.measures.get("samples") and storage.exists(r.measures["samples"]["images_uri"])]
    for shape in dict.fromkeys(_shape(record) for record in shown):
        rows = [record for record in shown if _shape(record) == shape]
        if len(rows) < 2:
            continue
        names = [record.role or record.label for record in rows]
        sets = [read_images(record.measures["samples"]["images_uri"], _BLOCKS * _COLUMNS) for record in rows]
        sampler = rows[0].measures["samples"]["sampler"]
        yield _alternating(sets, names, f"The same noise in each column of {len(rows)} rows: {', '.join(names)}; {sampler}.")


def _shape(record: AblationTrial) -> tuple[str, int]:
    data = record.experiment["data"]
    return str(data["name"]), int(data["image_size"])


def _stages(records: Sequence[AblationTrial]) -> Iterator[SampleGrid]:
    """The first stage's images above the second stage's (supplement figure 2)."""
    for record in records:
        stages = record.measures.get("stages")
        if not stages or not (storage.exists(stages["first_uri"]) and storage.exists(stages["second_uri"])):
            continue
        small, large = (read_images(stages[name], _BLOCKS * _COLUMNS) for name in ("first_uri", "second_uri"))
        factor = large.shape[-1] // small.shape[-1]
        enlarged = small.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
        yield _alternating(
            [enlarged, large],
            [f"{small.shape[-1]} px", f"{large.shape[-1]} px"],
            "The first stage's samples (enlarged without smoothing), and below each the second stage's output (supplement figure 2).",
        )


def _reported(records: Sequence[AblationTrial]) -> Iterator[SampleGrid]:
    """The grid of each trial's reported evaluation; all are from the same noise, unless their seeds differ."""
    seeds = {record.final["protocol"]["distance"]["seed"] for record in records if record.final}
    noise = ": the same noise in every grid." if len(seeds) == 1 else "."
    for record in records:
        uri = (record.final or {}).get("grid_uri", "")
        if uri and storage.exists(uri):
            yield SampleGrid(address=data_uri(storage.read_bytes(uri)), caption=f"{record.label}{noise}", wide=False)


def _alternating(sets: Sequence[torch.Tensor], names: Sequence[str], caption: str) -> SampleGrid:
    """Draw blocks of rows: the first ten images of each set, then the next ten."""
    firsts = range(0, min(map(len, sets)), _COLUMNS)
    parts = [images[first : first + _COLUMNS] for first in firsts for images in sets]
    return _grid(parts, [name for _ in firsts for name in names], caption)


def _grid(parts: Iterable[torch.Tensor], names: Sequence[str], caption: str) -> SampleGrid:
    pixels = grids.sample_grid(torch.cat(list(parts)), num_columns=_COLUMNS, row_names=names)
    return SampleGrid(address=data_uri(grids.to_png(pixels)), caption=caption)
