"""Types of fields of a class that is stored as JSON, by which `training.storage` checks them, and stored numbers that may be missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from training.config.validation import adapter

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A number; null, which JSON has for one that is not finite (`as_plain`), is read as NaN."""


def finite_scores(score: Mapping[str, Any]) -> dict[str, float]:
    """Return the distances of a stored score of a checkpoint by weights, without those that are not finite."""
    return {weights: float(value) for weights, value in score["scores"].items() if value is not None and math.isfinite(value)}


@dataclass(frozen=True, slots=True)
class CheckedAs:
    """Annotation of a dictionary whose values are checked as the fields of another class. It is read as it is stored."""

    cls: Any

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the schema of the class, whose object is thrown away."""

        def check(value: Any, make: Callable[[Any], Any]) -> Any:
            make(value)
            return value

        return core_schema.no_info_wrap_validator_function(check, adapter(self.cls).core_schema)
