"""Every mutation applies to the source as it is now; `make mutations` runs them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def mutations() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutations", TESTS / "mutations.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutations"] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


def test_every_mutation_still_applies_to_the_source(mutations: ModuleType) -> None:
    stale = [
        f"{mutation.what} ({mutation.file})"
        for group in mutations.GROUPS.values()
        for mutation in group
        if (TESTS.parent / mutation.file).read_text().count(mutation.old) != 1 or mutation.old == mutation.new
    ]
    assert stale == []
