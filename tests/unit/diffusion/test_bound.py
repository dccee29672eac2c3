"""Terms of the bound on keyed noise: common to chains, models and batches."""

from __future__ import annotations

import torch
from oracles import DiscreteOracle, discrete_images
from torch import Tensor

from training.config.experiment import DiffusionConfig
from training.diffusion.losses import bound_terms
from training.diffusion.process import Denoiser, make_process

LEVELS, PROBABILITIES = [64, 128, 192], [0.3, 0.5, 0.2]
SMALL = DiffusionConfig(num_timesteps=100)


def data(num_images: int = 4) -> Tensor:
    return discrete_images(LEVELS, PROBABILITIES, num_images)[0].float() / 127.5 - 1


def test_a_spaced_chain_and_the_whole_one_see_the_same_noisy_images() -> None:
    seen: list[Tensor] = []

    def spy(x_t: Tensor, timesteps: Tensor) -> Tensor:
        seen.append(x_t)
        return torch.cat([x_t, x_t], 1)

    whole, spaced = make_process(SMALL), make_process(SMALL, (0, 30, 70))
    for process, t in ((whole, [0, 30, 70, 30]), (spaced, [0, 1, 2, 1])):
        bound_terms(Denoiser(process, spy), data(), torch.tensor(t), indices=torch.arange(4), seed=5)
    assert torch.equal(seen[0], seen[1])


def test_noise_differs_by_image_timestep_and_seed() -> None:
    process = make_process(SMALL)
    x_0 = data(1).expand(3, -1, -1, -1)
    oracle = DiscreteOracle(process, LEVELS, PROBABILITIES)

    def terms(t: list[int], indices: list[int], seed: int) -> list[float]:
        return bound_terms(Denoiser(process, oracle), x_0, torch.tensor(t), indices=torch.tensor(indices), seed=seed).tolist()

    first = terms([40, 40, 40], [0, 1, 0], 0)
    assert first[0] == first[2] != first[1]
    assert terms([40, 40, 40], [0, 1, 0], 1)[0] != first[0]
