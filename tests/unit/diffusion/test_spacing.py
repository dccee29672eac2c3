"""The timesteps that a spacing keeps, and the spacings that are refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config.spacing import ddim_spacing, likelihood_spacing, parse_spacing, uniform_spacing


@pytest.mark.parametrize("key", ["4000:25", "4000:50", "4000:100", "1000:25", "10:2,2,2"])
def test_uniform_and_section_spacings_are_the_released_ones(key: str, golden: dict[str, Any]) -> None:
    num_timesteps, spacing = key.split(":")
    assert list(parse_spacing(spacing, int(num_timesteps))) == golden["respacing"][key]


@given(st.integers(2, 4000).flatmap(lambda n: st.tuples(st.just(n), st.integers(2, n))))
def test_a_uniform_spacing_has_k_different_timesteps_with_both_ends(sizes: tuple[int, int]) -> None:
    num_timesteps, num_steps = sizes
    kept = uniform_spacing(num_timesteps, num_steps)
    assert len(set(kept)) == num_steps
    assert kept == tuple(sorted(kept))
    assert (kept[0], kept[-1]) == (0, num_timesteps - 1)
    strides = [b - a for a, b in itertools.pairwise(kept)]
    assert max(strides) - min(strides) <= 1


def test_one_step_is_the_noisiest_timestep_and_all_steps_are_all() -> None:
    """At timestep 0 the network would take the noise that sampling begins with for an image, and return it."""
    assert parse_spacing("1", 4000) == (3999,)
    assert parse_spacing("1,1", 4000) == (0, 2000), "sections are the released code's"
    assert parse_spacing("4000", 4000) == parse_spacing("", 4000) == tuple(range(4000))


def test_ddim_spacing_starts_at_zero_with_one_integer_stride() -> None:
    assert parse_spacing("ddim25", 4000) == tuple(range(0, 4000, 160))
    assert ddim_spacing(1000, 1000) == tuple(range(1000))


# Reference-conventions 2: the number of evaluations of the likelihood schedule at T = 4000.
@pytest.mark.parametrize(("num_steps", "count"), [(25, 184), (50, 129), (100, 139), (200, 219), (400, 409), (1000, 1003)])
def test_likelihood_spacing_adds_every_timestep_up_to_t_over_k(num_steps: int, count: int) -> None:
    kept = likelihood_spacing(4000, num_steps)
    assert len(kept) == count
    assert set(range(4000 // num_steps)) | set(uniform_spacing(4000, num_steps)) == set(kept)
    assert parse_spacing(f"nll:{num_steps}", 4000) == kept == tuple(sorted(kept))


def test_an_explicit_list_is_sorted_and_without_duplicates() -> None:
    assert parse_spacing("t:10, 0,5,5", 100) == (0, 5, 10)


@pytest.mark.parametrize(
    ("spacing", "num_timesteps", "message"),
    [
        ("0", 100, "use 1 to 100"),
        ("101", 100, "spacing '101' asks for 101 of 100 timesteps; use 1 to 100"),
        ("60,60", 100, "a section of 50 timesteps cannot give 60"),
        ("1,1,1,1", 3, "4 sections do not fit"),
        ("ddim60", 1000, "ddim59 and ddim63"),
        ("ddim0", 100, "use 1 to 100"),
        ("ddim1", 100, "ddim2 and ddim3"),
        ("nll:0", 100, "use 1 to 100"),
        ("nll:101", 100, "use 1 to 100"),
        ("t:5,100", 100, r"\[100\].* 0\.\.99"),
        ("t:-1", 100, r"0\.\.99"),
        ("t:", 100, "is not understood"),
        ("fast", 100, "is not understood"),
        ("10,,5", 100, "is not understood"),
        ("1 0", 100, "is not understood"),
        ("ddim", 100, "is not understood"),
        ("2.5", 100, "is not understood"),
        ("learned:10", 100, "belong to one checkpoint"),
        ("learned:²", 100, "is not understood"),
    ],
)
def test_an_impossible_spacing_is_refused_with_what_is_possible(spacing: str, num_timesteps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_spacing(spacing, num_timesteps)
