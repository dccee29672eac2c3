"""One number about a sample, with what is known of its error."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MetricValue:
    """One number.

    Attributes:
        name: "kid", "precision" and so on.
        standard_error: Its standard error, or its spread over subsets if that is the custom; None if unknown.
        note: The method, in a few words.
        bias: Estimate of what the finite number of images adds to the value: 0 for an unbiased estimator, None if no
            correction is published. `value - bias` is the corrected value.
    """

    name: str
    value: float
    standard_error: float | None
    note: str
    bias: float | None = None
