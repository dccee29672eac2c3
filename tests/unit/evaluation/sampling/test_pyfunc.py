"""A registered model as MLflow calls it: a table of seeds gives images, and a value that does not suit the model is refused."""

from typing import Any

import numpy as np
import pandas
import pytest

from evaluation.sampling.pyfunc import Sampler
from evaluation.sampling.trained_model import load_model
from training.checkpoints import checkpoint
from training.config.errors import UserError


@pytest.fixture(scope="module")
def sampler(kept_run_uri: str) -> Sampler:
    return Sampler(load_model(checkpoint.checkpoint_uri(kept_run_uri, 200)))


def test_a_row_gives_its_images(sampler: Sampler) -> None:
    table = pandas.DataFrame([{"seed": 1, "num_images": 2, "label": 3.0, "evaluations": 2}, {"seed": 1, "evaluations": 2}])
    images = sampler.predict(table)
    assert images.shape == (3, 8, 8, 1)
    assert images.dtype == np.uint8
    assert np.array_equal(sampler.predict(table.convert_dtypes()), images), "pandas' own missing value stands for none too"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"seed": 1, "num_images": 0}, "num_images must be at least 1, got 0"),
        ({"seed": 1, "num_images": -2}, "num_images must be at least 1, got -2"),
        ({"seed": 1, "evaluations": -5}, "evaluations must be at least 1, got -5"),
        ({"seed": 1, "label": 3.7}, "label must be a whole number, got 3.7"),
        ({"seed": "one"}, "seed must be a whole number, got 'one'"),
        ({"seed": -1}, r"^seed: must be in \[0, 2\^32\), got -1"),
        ({"seed": 2**32}, r"^seed: must be in \[0, 2\^32\), got 4294967296"),
        ({"seed": float("inf")}, "seed must be a whole number, got inf"),
        ({"seed": 1, "label": 10}, "are not all in 0..9"),
        ({"label": 1}, "a row has seed"),
    ],
)
def test_a_row_that_does_not_suit_the_model_is_refused(sampler: Sampler, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sampler.predict(pandas.DataFrame([row]))


def test_a_table_without_rows_is_refused(sampler: Sampler) -> None:
    with pytest.raises(UserError, match="the table has no row"):
        sampler.predict(pandas.DataFrame({"seed": []}))
