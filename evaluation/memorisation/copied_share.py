"""The share of copies among images, corrected for false alarms and for misses.

An image is flagged if its relative distance r to the training set is below a threshold t: the j-th smallest r of n held-out images,
which cannot be copies. The rate a of false alarms that follows has the distribution Beta(j, n + 1 - j), whatever the distribution of
r (Vovk 2012, "Conditional validity of inductive conformal predictors"). With q the rate at which images are flagged and c the recall
on artificial copies, the share of copies is

    (q - a) / (c - a)        (Rogan and Gladen 1978)

Its interval takes quantiles over draws of the three rates: a as above, q and c from their posteriors under Jeffreys' prior,
Beta(x + 1/2, m - x + 1/2) for x of m images. The lower limit is the 2.5% quantile of that share. The upper limit is the 97.5% quantile of
q / c: samples may lie farther from the training set than held-out images do, and then fewer false alarms come than a.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from evaluation.records.intervals import student_factor
from training.shapes import Float

FALSE_ALARM_RATE = 0.01
_NUM_DRAWS = 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class CopiedShare:
    """The share of copies among `num_images`, of which `num_flagged` are flagged.

    Attributes:
        share: The estimate, in [0, 1].
        standard_error: That of a normal distribution with this interval.
        interval: 95% interval; wider than that where false alarms are rarer among the samples than among held-out images.
        false_alarm_rate: Expected rate of flagged images among new images that are no copies.
        recall: Rate of flagged images among artificial copies.
        threshold: Relative distance below which an image is flagged.
    """

    num_images: int
    num_flagged: int
    num_held_out: int
    share: float
    standard_error: float
    interval: tuple[float, float]
    false_alarm_rate: float
    recall: float
    threshold: float

    @property
    def is_found(self) -> bool:
        """True if more images are flagged than false alarms explain."""
        return self.interval[0] > 0

    def __str__(self) -> str:
        """Return the share with its interval in words."""
        low, high = self.interval
        return f"{self.share:.1%} (95% interval {low:.1%} to {high:.1%})"


def _threshold(held_out: Float[Tensor, " held_out"], false_alarm_rate: float) -> tuple[float, int]:
    """Return the threshold t, and its rank j among the held-out images: the largest with j / (n + 1) up to the rate, 1 at least."""
    rank = max(1, int(false_alarm_rate * (len(held_out) + 1)))
    return float(held_out.kthvalue(rank).values), rank


def copied_share(
    images: Float[Tensor, " images"],
    held_out: Float[Tensor, " held_out"],
    copies: Float[Tensor, " copies"],
    false_alarm_rate: float = FALSE_ALARM_RATE,
) -> CopiedShare:
    """Estimate the share of copies from relative distances: of the images, of held-out images, and of artificial copies."""
    limit, rank = _threshold(held_out, false_alarm_rate)
    num_flagged, num_recalled = int((images < limit).sum()), int((copies < limit).sum())
    random = np.random.default_rng(0)

    def posterior(found: int, count: int) -> npt.NDArray[np.float64]:
        return random.beta(found + 0.5, count - found + 0.5, _NUM_DRAWS)

    false_alarms = random.beta(rank, len(held_out) + 1 - rank, _NUM_DRAWS)
    flagged, recalled = posterior(num_flagged, len(images)), posterior(num_recalled, len(copies))
    rate, recall = rank / (len(held_out) + 1), num_recalled / len(copies)
    # A draw in which copies are flagged no more often than other images says nothing: the share may be anything.
    lows = _corrected(flagged, false_alarms, recalled)
    highs = np.where(recalled > false_alarms, np.clip(flagged / recalled, 0.0, 1.0), 1.0)
    low, high = float(np.quantile(lows, 0.025)), float(np.quantile(highs, 0.975))
    return CopiedShare(
        num_images=len(images),
        num_flagged=num_flagged,
        num_held_out=len(held_out),
        share=float(_corrected(num_flagged / len(images), rate, recall)),
        standard_error=(high - low) / (2 * student_factor(None)),
        interval=(low, high),
        false_alarm_rate=rate,
        recall=recall,
        threshold=limit,
    )


def _corrected(flagged: npt.ArrayLike, false_alarms: npt.ArrayLike, recall: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return (q - a) / (c - a), limited to [0, 1]; 0 where c is not above a."""
    q, a, c = (np.asarray(rate, dtype=np.float64) for rate in (flagged, false_alarms, recall))
    return np.where(c > a, np.clip((q - a) / np.where(c > a, c - a, 1.0), 0.0, 1.0), 0.0)
