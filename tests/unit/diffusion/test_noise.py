"""Keyed noise: the published generator, independence of the batch, and the distribution of the draws."""

from __future__ import annotations

import math

import pytest
import torch
from rounding import U32
from scipy import stats

from training.diffusion.noise import Stream, keyed_normal, keyed_uniform, philox_4x32

SHAPE = (3, 8, 9)


# kat_vectors of Random123 (Salmon et al.), philox4x32 with 10 rounds.
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_known_answers(counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]) -> None:
    a, b, c, d = (torch.tensor([word]) for word in counter)
    assert tuple(int(word) for word in philox_4x32((a, b, c, d), key)) == words


@pytest.mark.parametrize("shape", [(1,), (3, 8, 9), (3, 32, 32), (3, 256, 256)])
def test_a_field_is_bitwise_the_same_however_the_batch_is_split_or_ordered(shape: tuple[int, ...]) -> None:
    indices = torch.arange(7, 18)
    whole = keyed_normal(3, Stream.TRAIN_NOISE, indices, shape, counter=5)
    for split in ([1] * 11, [4, 7], [10, 1]):
        parts = [keyed_normal(3, Stream.TRAIN_NOISE, part, shape, counter=5) for part in indices.split(split)]
        assert torch.equal(torch.cat(parts), whole)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    assert torch.equal(keyed_normal(3, Stream.TRAIN_NOISE, indices[order], shape, counter=5), whole[order])


def test_a_field_does_not_depend_on_the_number_of_threads() -> None:
    before, fields = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            fields.append(keyed_normal(0, 1, torch.arange(64), (3, 32, 32)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*fields)


def test_a_counter_of_each_image_gives_what_that_counter_gives_alone() -> None:
    indices, counters = torch.tensor([4, 4, 9]), torch.tensor([0, 3999, 17])
    together = keyed_normal(1, Stream.LIKELIHOOD, indices, SHAPE, counter=counters)
    for row in range(3):
        alone = keyed_normal(1, Stream.LIKELIHOOD, indices[row : row + 1], SHAPE, counter=int(counters[row]))
        assert torch.equal(together[row : row + 1], alone)


@pytest.mark.parametrize(
    "changed",
    [{"seed": 1}, {"seed": 1 << 40}, {"stream": 2}, {"index": 8}, {"index": 7 + (1 << 33)}, {"counter": 1}, {"counter": 1 << 31}],
)
def test_every_part_of_the_key_changes_the_whole_field(changed: dict[str, int]) -> None:
    key = {"seed": 0, "stream": 1, "index": 7, "counter": 0}

    def draw(seed: int, stream: int, index: int, counter: int) -> torch.Tensor:
        return keyed_normal(seed, stream, torch.tensor([index]), (4000,), counter=counter)[0]

    a, b = draw(**key), draw(**(key | changed))
    assert not (a == b).any()
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 5 / math.sqrt(4000)


def test_keyed_normals_are_normal() -> None:
    x = keyed_normal(11, Stream.SAMPLE_START, torch.arange(200), (1000,)).double()
    n = x.numel()
    for moment, expected, spread in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert abs(float((x**moment).mean()) - expected) < 5 * math.sqrt(spread / n)
    assert stats.kstest(x.flatten().numpy(), "norm").pvalue > 1e-3
    # Beyond 4 lie 63 in a million: the tails are neither cut nor heavy.
    assert 4 <= int((x.abs() > 4).sum()) <= 30


def test_the_fields_of_neighbouring_indices_and_positions_are_uncorrelated() -> None:
    x = keyed_normal(2, Stream.TRAIN_NOISE, torch.arange(64), (4096,))
    for y in (x, x.abs()):
        assert float((torch.corrcoef(y) - torch.eye(64)).abs().max()) < 6 / math.sqrt(4096)
    # The four words of a block, and the two normals of a pair, lie a quarter of the field apart.
    quarters = x.view(64, 4, -1).transpose(0, 1).flatten(1)
    assert float((torch.corrcoef(quarters) - torch.eye(4)).abs().max()) < 6 / math.sqrt(quarters.shape[1])


def test_keyed_uniforms_are_uniform_below_one() -> None:
    u = keyed_uniform(5, Stream.TRAIN_TIMESTEP, torch.arange(100_000))
    assert u.dtype == torch.float64
    assert 0.0 <= float(u.min()) < 1e-4
    assert 1.0 - 1e-4 < float(u.max()) < 1.0
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3
    # 53 bits: below the 32nd they are filled, and uniform too.
    assert stats.kstest((u * 2.0**32 % 1.0).numpy(), "uniform").pvalue > 1e-3


def test_an_empty_batch_gives_an_empty_field() -> None:
    assert keyed_normal(0, 1, torch.arange(0), (3, 4)).shape == (0, 3, 4)


@pytest.mark.parametrize(("stream", "counter"), [(1 << 16, 0), (-1, 0), (1, 1 << 32), (1, -1)])
def test_a_key_that_would_collide_is_refused(stream: int, counter: int) -> None:
    with pytest.raises(ValueError, match="not in"):
        keyed_normal(0, stream, torch.arange(2), (1,), counter=counter)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_uniforms_and_normals_that_differ_by_rounding() -> None:
    indices = torch.arange(7, 18)
    on_gpu = indices.cuda()
    assert torch.equal(keyed_uniform(1, 2, on_gpu).cpu(), keyed_uniform(1, 2, indices))
    whole = keyed_normal(1, 2, on_gpu, (3, 32, 32))
    # Logarithm, root and product err by 5 u, cosine and sine by 10 u (both sides together), times a radius of up to 6.7.
    torch.testing.assert_close(whole.cpu(), keyed_normal(1, 2, indices, (3, 32, 32)), rtol=5 * U32, atol=10 * 6.7 * U32)
    assert torch.equal(torch.cat([keyed_normal(1, 2, part, (3, 32, 32)) for part in on_gpu.split(4)]), whole)
