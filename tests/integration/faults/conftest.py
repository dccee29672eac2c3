"""The data set of the trainings that are disturbed, and their end."""

from collections.abc import Iterator

import pytest
from faulty_training import end_all, prepare_data

from pipelines.services.services import Services


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    end_all()


@pytest.fixture(scope="module")
def data_uri(services: Services) -> str:
    return prepare_data(f"{services.bucket_uri}/faults")
