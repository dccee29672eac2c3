"""The list of mutations and its table stay true to the source without running them (`make mutations` does)."""

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


def test_the_table_lists_every_mutation_as_caught(mutations: ModuleType) -> None:
    table = (TESTS / "MUTATIONS.md").read_text()
    everything = [mutation for group in mutations.GROUPS.values() for mutation in group]
    assert [m.what for m in everything if f"| {m.what} | {m.file} |" not in table] == []
    assert f"{len(everything)} mutations, {len(everything)} caught" in table
