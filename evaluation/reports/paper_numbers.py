"""The paper's numbers to be shown beside ours: those of the presets, and those of other people's models that it cites.

What the paper reports of its own experiments stands with them in `training.config.preset_table`. FIDs of unconditional
ImageNet 64x64 are on 10K samples, the others on 50K (supplement section 1).
"""

from __future__ import annotations

from dataclasses import dataclass

from training.config.experiment import Experiment
from training.config.presets import cited, names


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperRow:
    """One published row.

    Attributes:
        model: In words; of the paper's own experiments, the preset and its overrides.
        source: Table, figure or section.
        bits_per_dim: Negative log-likelihood; None if not given.
        fid: None if not given.
        precision: None if not given.
        recall: None if not given.
    """

    model: str
    source: str
    bits_per_dim: float | None = None
    fid: float | None = None
    precision: float | None = None
    recall: float | None = None


_Images = tuple[str, int, bool]
"""Data set, image size, whether the model is given labels."""

OTHERS: dict[_Images, tuple[PaperRow, ...]] = {
    ("imagenet", 64, True): (PaperRow(model="BigGAN-deep", source="main paper", fid=4.06, precision=0.86, recall=0.59),),
    ("imagenet", 256, True): (
        PaperRow(model="VQ-VAE-2 (two-stage)", source="supplement table 2", fid=38.1),
        PaperRow(model="BigGAN", source="supplement table 2", fid=7.7),
        PaperRow(model="BigGAN-deep", source="supplement table 2", fid=7.0),
    ),
}
"""Other people's models, as the paper cites them."""


def rows_beside(experiment: Experiment) -> tuple[PaperRow, ...]:
    """Every published row for the same images, unconditional beside unconditional, conditional beside conditional."""
    images = _images(experiment)
    rows: list[PaperRow] = []
    for name in names():
        row = cited(name)
        if _images(row.experiment) != images:
            continue
        rows += [
            PaperRow(
                model=", ".join([name, *result.overrides]),
                source=result.where,
                bits_per_dim=result.bits_per_dim,
                fid=result.fid,
                precision=result.precision,
                recall=result.recall,
            )
            for result in row.results
            if result.fid is not None or result.bits_per_dim is not None
        ]
    return (*rows, *OTHERS.get(images, ()))


def _images(experiment: Experiment) -> _Images:
    return experiment.data.name, experiment.data.image_size, experiment.model.class_conditional
