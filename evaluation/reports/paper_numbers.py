"""Published numbers for a comparison: those of the paper's experiments, and those of other models that the paper cites.

The paper's own results are part of the presets (`training.config.presets`). FIDs of unconditional ImageNet 64x64 are
on 10K samples, the others on 50K (supplement section 1).
"""

from __future__ import annotations

from dataclasses import dataclass

from training.config.experiment import Experiment
from training.config.presets import find_preset, names


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperRow:
    """One published row: the preset and its overrides, or another paper's model; None for a number that is not given."""

    model: str
    source: str
    bits_per_dim: float | None = None
    fid: float | None = None


_Images = tuple[str, int, bool]
"""Data set, image size, whether the model is class-conditional."""

OTHER_MODELS: dict[_Images, tuple[PaperRow, ...]] = {
    ("imagenet", 64, True): (PaperRow(model="BigGAN-deep", source="main paper", fid=4.06),),
    ("imagenet", 256, True): (
        PaperRow(model="VQ-VAE-2 (two-stage)", source="supplement table 2", fid=38.1),
        PaperRow(model="BigGAN", source="supplement table 2", fid=7.7),
        PaperRow(model="BigGAN-deep", source="supplement table 2", fid=7.0),
    ),
}
"""The results of other papers that the paper cites."""


def rows_for(experiment: Experiment) -> tuple[PaperRow, ...]:
    """Return every published row for the same images and the same kind of model, conditional or not."""
    images = _images(experiment)
    rows: list[PaperRow] = []
    for name in names():
        row = find_preset(name)
        if _images(row.experiment) != images:
            continue
        rows += [
            PaperRow(
                model=", ".join([name, *result.overrides]),
                source=result.where,
                bits_per_dim=result.bits_per_dim,
                fid=result.fid,
            )
            for result in row.results
            if result.fid is not None or result.bits_per_dim is not None
        ]
    return (*rows, *OTHER_MODELS.get(images, ()))


def _images(experiment: Experiment) -> _Images:
    return experiment.data.name, experiment.data.image_size, experiment.model.class_conditional
