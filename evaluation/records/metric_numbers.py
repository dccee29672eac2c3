"""The numbers of an evaluation besides the distance and the bits/dim: their names for people, and how they are read.

Each number that a metric computes, or that a result stores, has a row here. A name without one is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from training.config.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricNumber:
    """A number's row.

    Attributes:
        title: Its name for people.
        higher_is_better: False for distances; None for a number without a better side.
        share_of: The images of which it is a fraction, which people read in percent; None for any other number.
        of_single_images: True if it compares single images, and so takes at most the samples whose features are stored.
    """

    title: str
    higher_is_better: bool | None = False
    share_of: Literal["samples", "real images"] | None = None
    of_single_images: bool = False


METRIC_NUMBERS = {
    "kid": MetricNumber(title="KID", of_single_images=True),
    "kernel_distance": MetricNumber(title="Kernel distance", of_single_images=True),
    "cmmd": MetricNumber(title="CMMD", of_single_images=True),
    "gaussian_mmd": MetricNumber(title="Gaussian MMD", of_single_images=True),
    "mind": MetricNumber(title="MIND", of_single_images=True),
    "sliced_wasserstein": MetricNumber(title="Sliced Wasserstein distance", of_single_images=True),
    "fid_infinity": MetricNumber(title="FID at infinity"),
    "fd_infinity": MetricNumber(title="Frechet distance at infinity"),
    # Density is also higher if samples crowd together.
    "density": MetricNumber(title="Density", higher_is_better=None, of_single_images=True),
    "coverage": MetricNumber(title="Coverage", higher_is_better=True, share_of="real images", of_single_images=True),
    "inception_score": MetricNumber(title="Inception score", higher_is_better=True),
    "precision": MetricNumber(title="Precision", higher_is_better=True, share_of="samples", of_single_images=True),
    "recall": MetricNumber(title="Recall", higher_is_better=True, share_of="real images", of_single_images=True),
    "sfid": MetricNumber(title="sFID"),
    "label_agreement": MetricNumber(title="Label agreement", higher_is_better=True, share_of="samples"),
    "copied_share": MetricNumber(title="Copied images", share_of="samples"),
}
SHARES = frozenset(name for name, number in METRIC_NUMBERS.items() if number.share_of)
"""Numbers that are a fraction of images; people read them in percent."""


def metric_number(name: str) -> MetricNumber:
    """Return the row of a number, or refuse a name that has none."""
    found = METRIC_NUMBERS.get(name)
    if found is None:
        known = ", ".join(METRIC_NUMBERS)
        raise UserError(f"{name!r} is no metric of this version, which knows {known}; read its result with the version that stored it")
    return found
