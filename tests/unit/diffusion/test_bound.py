"""Terms of the bound on keyed noise: common to chains, models and batches."""

from __future__ import annotations

import torch
from oracles import DiscreteOracle, discrete_images
from torch import Tensor

from training.config.experiment import DiffusionConfig
from training.diffusion.bound import bound_terms, vlb_ratio
from training.diffusion.process import make_process

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
        bound_terms(process, spy, data(), torch.tensor(t), indices=torch.arange(4), seed=5)
    assert torch.equal(seen[0], seen[1])


def test_noise_differs_by_image_timestep_and_seed() -> None:
    process = make_process(SMALL)
    x_0 = data(1).expand(3, -1, -1, -1)
    oracle = DiscreteOracle(process, LEVELS, PROBABILITIES)

    def terms(t: list[int], indices: list[int], seed: int) -> list[float]:
        return bound_terms(process, oracle, x_0, torch.tensor(t), indices=torch.tensor(indices), seed=seed).tolist()

    first = terms([40, 40, 40], [0, 1, 0], 0)
    assert first[0] == first[2] != first[1]
    assert terms([40, 40, 40], [0, 1, 0], 1)[0] != first[0]


def test_the_ratio_of_the_terms_says_which_model_is_better_where() -> None:
    """Figure 3: equal where the models agree, below 1 where the first one is better."""
    process = make_process(SMALL)
    oracle = DiscreteOracle(process, LEVELS, PROBABILITIES)

    def wrong_late(x_t: Tensor, timesteps: Tensor) -> Tensor:
        late = (timesteps >= 500).float().view(-1, 1, 1, 1)
        eps, v = oracle(x_t, timesteps).chunk(2, 1)
        return torch.cat([eps + 0.3 * late, v], 1)

    ratio = vlb_ratio(process, oracle, wrong_late, data(), indices=torch.arange(4), seed=0)
    assert ratio.shape == (100,)
    assert torch.equal(ratio[1:50], torch.ones(49, dtype=torch.float64))
    assert (ratio[50:] < 1).all()
