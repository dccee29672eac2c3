"""The objectives against the released numbers and an independent computation, and their gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from rounding import NETWORK, U32, U64, schedule_error
from scipy import special
from torch import Tensor

from training.config.experiment import DiffusionConfig
from training.config.spacing import parse_spacing
from training.diffusion.losses import LossTerms, approximate_normal_cdf, discretized_gaussian_log_likelihood, normal_kl, training_losses
from training.diffusion.process import Model, make_process
from training.models.unet import UNet

T = 4000
TIMESTEPS = [0, 1, 2, 10, 100, T // 2, T - 2, T - 1]


def losses(config: DiffusionConfig, model: Model, x_0: Tensor, t: Tensor, eps: Tensor, spacing: str = "") -> LossTerms:
    return training_losses(make_process(config, parse_spacing(spacing, config.num_timesteps)), model, x_0, t, eps)


# ---------------------------------------------------------------- the released implementation's numbers


@pytest.mark.parametrize("timesteps", [[0, 1], [2, 2500]])
def test_hybrid_terms_are_the_released_ones(
    timesteps: list[int], golden: dict[str, Any], golden_image: Tensor, golden_noise: Tensor, golden_model: UNet
) -> None:
    terms = losses(DiffusionConfig(), golden_model, golden_image, torch.tensor(timesteps), golden_noise)
    expected = golden["training_losses"][f"hybrid_rescaled:{timesteps}"]
    assert terms.l_vlb is not None
    # The released "vb" is lambda L_vlb. At small t a pixel's rounding of 6e-8 is measured by a standard deviation of 2e-3, and a few of
    # them make 1e-4; over 3,072 pixels that averages to 2e-6, less than the network's error.
    for row in range(2):
        assert 0.001 * float(terms.l_vlb[row]) == pytest.approx(expected["vb"][row], rel=NETWORK)
        assert float(terms.l_simple[row]) == pytest.approx(expected["mse"][row], rel=NETWORK)
        assert float(terms.loss[row]) == pytest.approx(expected["loss"][row], rel=NETWORK)


def test_vlb_is_the_released_one(golden: dict[str, Any], golden_image: Tensor, golden_noise: Tensor, golden_model: UNet) -> None:
    terms = losses(DiffusionConfig(objective="vlb"), golden_model, golden_image, torch.tensor([0, 1]), golden_noise)
    assert terms.loss.tolist() == pytest.approx(golden["training_losses"]["vlb:[0, 1]"]["loss"], rel=NETWORK)


def test_the_discretised_gaussian_is_the_released_one(golden: dict[str, Any]) -> None:
    x_0, mean, log_scale, expected = torch.tensor(golden["disc_ll"]).unbind(1)
    # The mass is the difference of two numbers within 1. Where it would be below 1e-12 stands the logarithm of 1e-12, and 1e-4 is less than
    # any other of these.
    allowed = 4 * U32 / expected.exp().clamp(min=1e-4) + 2 * U32 * expected.abs()
    assert bool(((discretized_gaussian_log_likelihood(x_0, mean, log_scale) - expected).abs() <= allowed).all())


# Reference-conventions 5.4: an untrained network (output 0) on a ramp image, T = 4000, cosine.
def test_an_untrained_network_has_the_loss_of_predicting_zero(golden_noise: Tensor) -> None:
    x_0, t = torch.zeros(8, 3, 32, 32), torch.tensor(TIMESTEPS)
    eps = golden_noise[:1].expand(8, -1, -1, -1)
    terms = losses(DiffusionConfig(), lambda x_t, _t: torch.zeros(len(x_t), 6, 32, 32), x_0, t, eps)
    assert torch.equal(terms.l_simple, eps.square().flatten(1).mean(1))


# ---------------------------------------------------------------- an independent float64 computation


def independent_terms(x_0: np.ndarray, eps: np.ndarray, out: np.ndarray, t: int, cdf: Any) -> tuple[float, float]:
    """(mse, one term of the bound in bits/dim) at T = 4000, cosine, from the definitions, in float64 numpy.

    The posterior comes from Bayes' rule rather than from equations 10 and 11, alpha_bar from its closed form.
    """

    def alpha_bar(step: int) -> float:
        f = [math.cos((u / T + 0.008) / 1.008 * math.pi / 2) ** 2 for u in (step, 0)]
        return f[0] / f[1] if step < T else (1 - 0.999) * alpha_bar(T - 1)

    now, before = alpha_bar(t + 1), alpha_bar(t)
    beta = 1 - now / before
    eps_hat, v = np.split(out, 2, axis=0)
    x_t = math.sqrt(now) * x_0 + math.sqrt(1 - now) * eps
    x_0_hat = (x_t - math.sqrt(1 - now) * eps_hat) / math.sqrt(now)

    def posterior(given: np.ndarray) -> np.ndarray:
        if t == 0:
            return given
        precision = (1 - beta) / beta + 1 / (1 - before)
        return np.asarray((math.sqrt(1 - beta) * x_t / beta + math.sqrt(before) * given / (1 - before)) / precision)

    at = max(t, 1)
    later, earlier = alpha_bar(at + 1), alpha_bar(at)
    log_lower = math.log((1 - later / earlier) * (1 - earlier) / (1 - later))
    log_variance = log_lower + (v + 1) / 2 * (math.log(beta) - log_lower)
    mse = float(((eps - eps_hat) ** 2).mean())
    if t == 0:
        level = np.rint((x_0 + 1) * 127.5)
        scale = np.exp(0.5 * log_variance)
        above = np.where(level == 255, 1.0, cdf(((2 * level + 1) / 255 - 1 - posterior(x_0_hat)) / scale))
        below = np.where(level == 0, 0.0, cdf(((2 * level - 1) / 255 - 1 - posterior(x_0_hat)) / scale))
        return mse, float(-np.log(np.maximum(above - below, 1e-12)).mean() / math.log(2))
    q = torch.distributions.Normal(torch.from_numpy(posterior(x_0)), torch.tensor(math.exp(log_lower / 2), dtype=torch.float64))
    p = torch.distributions.Normal(torch.from_numpy(posterior(x_0_hat)), torch.from_numpy(np.exp(log_variance / 2)))
    return mse, float(torch.distributions.kl_divergence(q, p).mean() / math.log(2))


def tanh_cdf(x: np.ndarray) -> np.ndarray:
    """The released code's approximation, as a logistic function: (1 + tanh a) / 2 = 1 / (1 + exp(-2 a))."""
    return np.asarray(special.expit(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def case(dtype: torch.dtype, golden_image: Tensor, golden_noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """An image with 0 and 255 pixels; noise; an output half right about eps, with v from -1.3 to 1.3."""
    level = torch.round((golden_image[:1].double() + 1) * 127.5)
    x_0, eps = (level / 127.5 - 1), golden_noise[:1].double()
    out = torch.cat([eps + 0.4 * eps.flip(3), 0.9 * golden_noise[1:].double()], dim=1)
    return x_0.to(dtype), eps.to(dtype), out.to(dtype)


UNIT_ROUNDOFF = {torch.float32: U32, torch.float64: U64}


def rounding_error(x_0: Tensor, eps: Tensor, out: Tensor, t: int, unit: float) -> tuple[float, float]:
    """First-order bounds of the rounding errors of (mse, one term of the bound in bits/dim), for a unit roundoff u.

    An operation errs by u times its result; an error travels on times the derivative of what follows. No cancellation between
    the errors of different pixels is counted on. The tables are float64, rounded once where they meet an image.
    """
    process, at = make_process(DiffusionConfig()), torch.tensor([t])
    x_0, eps, (eps_hat, v) = x_0.double(), eps.double(), out.double().chunk(2, 1)

    def table(name: str) -> Tensor:
        return process.at(name, at, x_0)

    x_t = process.q_sample(x_0, at, eps)
    p, q = process.read_output(out.double(), x_t, at, clip_denoised=False), process.q_posterior(x_0, x_t, at)
    mse_error = (2 * (eps - eps_hat).abs() * unit * eps.abs() + 3 * unit * (eps - eps_hat).square()).mean()
    # x_t and x_0_hat are sums of two products of two rounded factors; so are both means.
    x_t_error = 3 * unit * (table("sqrt_alpha_bars") * x_0.abs() + table("sqrt_one_minus_alpha_bars") * eps.abs())
    from_x_t, from_eps = table("sqrt_recip_alpha_bars"), table("sqrt_recipm1_alpha_bars")
    x_0_error = from_x_t * x_t_error + 3 * unit * (from_x_t * x_t.abs() + from_eps * eps_hat.abs())
    a, b = table("posterior_mean_coef_x_0"), table("posterior_mean_coef_x_t")
    mean_error = a * x_0_error + 3 * unit * (a * (x_0.abs() + p.x_0.abs()) + 2 * b * x_t.abs())
    log_error = 4 * unit * (table("log_betas").abs() + table("posterior_log_variance_clipped").abs()) * (1 + v.abs()) / 2
    if t == 0:
        scale = (0.5 * p.log_variance).exp()
        ends = torch.stack([(x_0 - p.mean + sign / 255) / scale for sign in (-1, 1)])
        end_errors = (b * x_t_error + mean_error + 2 * unit) / scale + ends.abs() * (log_error + 3 * unit)
        density = (-ends.square() / 2).exp() / math.sqrt(2 * math.pi)
        mass = discretized_gaussian_log_likelihood(x_0, p.mean, 0.5 * p.log_variance).exp()
        nats = ((density * end_errors).sum(0) + 4 * unit) / mass
    else:
        gap = q.log_variance - p.log_variance
        squares = (q.mean - p.mean).square() / p.log_variance.exp()
        nats = 0.5 * (
            (gap.exp() - 1).abs() * log_error
            + unit * (2 * gap.abs() + 3 * (1 + gap.exp()))
            + squares * (log_error + 4 * unit)
            + (2 * (q.mean - p.mean).abs() + mean_error) * mean_error / p.log_variance.exp()
        )
    return float(mse_error), float(nats.mean()) / math.log(2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("t", TIMESTEPS)
def test_terms_agree_with_an_independent_computation(t: int, dtype: torch.dtype, golden_image: Tensor, golden_noise: Tensor) -> None:
    x_0, eps, out = case(dtype, golden_image, golden_noise)
    assert int((x_0 == -1).sum()) > 0
    assert int((x_0 == 1).sum()) > 0
    mse, bits = independent_terms(*(x[0].double().numpy() for x in (x_0, eps, out)), t, tanh_cdf)
    mse_error, bits_error = rounding_error(x_0, eps, out, t, UNIT_ROUNDOFF[dtype])
    # The independent computation is float64, and solves for the posterior in another way, which cancels more: 1e-9.
    mse_error, bits_error = mse_error + 1e-9 * mse, bits_error + 1e-9 * bits
    for objective, weight in (("hybrid", 0.003), ("vlb", 1.0)):
        config = DiffusionConfig(objective=objective, vlb_weight=0.003)
        terms = losses(config, lambda x_t, _t: out, x_0, torch.tensor([t]), eps)
        assert terms.l_vlb is not None
        assert float(terms.l_simple) == pytest.approx(mse, rel=0, abs=mse_error)
        assert float(terms.l_vlb) == pytest.approx(T * bits, rel=0, abs=T * bits_error)
        loss, error = weight * T * bits, weight * T * bits_error
        if objective == "hybrid":
            loss, error = loss + mse, error + mse_error
        assert float(terms.loss) == pytest.approx(loss, rel=UNIT_ROUNDOFF[dtype], abs=error)


# ---------------------------------------------------------------- lambda, T, and the other options


@pytest.mark.parametrize("num_timesteps", [100, 1000, 4000])
@pytest.mark.parametrize("vlb_weight", [0.0, 0.001, 0.01])
def test_lambda_weighs_the_whole_bound_for_any_t(vlb_weight: float, num_timesteps: int, golden_image: Tensor, golden_noise: Tensor) -> None:
    x_0, eps, out = case(torch.float32, golden_image, golden_noise)
    common: dict[str, Any] = {"num_timesteps": num_timesteps, "vlb_weight": vlb_weight}
    t = torch.tensor([num_timesteps // 2])
    hybrid = losses(DiffusionConfig(**common), lambda x_t, _t: out, x_0, t, eps)
    vlb = losses(DiffusionConfig(**common, objective="vlb"), lambda x_t, _t: out, x_0, t, eps)
    assert hybrid.l_vlb is not None
    assert torch.equal(hybrid.l_vlb, vlb.loss)
    torch.testing.assert_close(hybrid.loss, hybrid.l_simple + vlb_weight * vlb.loss)


def test_a_respaced_chain_of_k_steps_multiplies_its_terms_by_k(golden_image: Tensor, golden_noise: Tensor) -> None:
    """The last term of both chains compares the same two alpha_bars, and so is the same but for the factor."""
    x_0, eps, out = case(torch.float64, golden_image, golden_noise)
    config = DiffusionConfig(objective="vlb")
    whole = losses(config, lambda x_t, _t: out, x_0, torch.tensor([3999]), eps)
    respaced = losses(config, lambda x_t, _t: out, x_0, torch.tensor([4]), eps, spacing="t:0,1,7,3998,3999")
    # beta and three coefficients come from the two alpha_bars.
    torch.testing.assert_close(respaced.loss / 5, whole.loss / T, rtol=4 * schedule_error(T), atol=0)


def test_l_simple_has_no_bound_term(golden_image: Tensor, golden_noise: Tensor) -> None:
    x_0, eps, out = case(torch.float32, golden_image, golden_noise)
    config = DiffusionConfig(objective="simple", variance="fixed_large")
    terms = losses(config, lambda x_t, _t: out[:, :3], x_0, torch.tensor([5]), eps)
    assert terms.l_vlb is None
    assert torch.equal(terms.loss, terms.l_simple)
    assert float(terms.loss) == pytest.approx(float((0.4 * eps).square().mean()), rel=16 * U32)  # 1.4 is rounded, 0.4 left


def test_a_network_that_predicts_x_0_is_compared_with_x_0(golden_image: Tensor, golden_noise: Tensor) -> None:
    x_0, eps, _ = case(torch.float32, golden_image, golden_noise)
    config = DiffusionConfig(objective="simple", variance="fixed_large", prediction="x_0")
    terms = losses(config, lambda x_t, _t: x_0 + 0.5, x_0, torch.tensor([5]), eps)
    assert float(terms.loss) == pytest.approx(0.25, rel=16 * U32)  # 1.5 is rounded, 0.5 left


def test_the_bound_of_the_true_posterior_is_zero_with_the_fixed_small_variance(golden_image: Tensor, golden_noise: Tensor) -> None:
    x_0, eps, _ = case(torch.float64, golden_image, golden_noise)
    config = DiffusionConfig(objective="vlb", variance="fixed_small")
    for t in (1, 10, 2000, 3999):
        assert abs(float(losses(config, lambda x_t, _t: eps, x_0, torch.tensor([t]), eps).loss)) < 1e-6
    assert float(losses(config, lambda x_t, _t: eps, x_0, torch.tensor([0]), eps).loss) > 0


def test_the_conditions_reach_the_network(golden_image: Tensor, golden_noise: Tensor) -> None:
    x_0, eps, out = case(torch.float32, golden_image, golden_noise)
    seen = {}

    def model(x_t: Tensor, timesteps: Tensor, **conditioning: Tensor) -> Tensor:
        seen.update(conditioning, timesteps=timesteps)
        return out

    config = DiffusionConfig()
    training_losses(make_process(config), model, x_0, torch.tensor([6]), eps, {"y": torch.tensor([7])})
    assert seen == {"y": torch.tensor([7]), "timesteps": torch.tensor([1.5])}


@pytest.mark.parametrize("t", [0, 3999])
def test_under_autocast_the_mathematics_stays_float32_and_finite(t: int, golden_image: Tensor, golden_noise: Tensor) -> None:
    x_0, eps, out = case(torch.float32, golden_image, golden_noise)
    half = out.bfloat16()
    plain = losses(DiffusionConfig(), lambda x_t, _t: half.float(), x_0, torch.tensor([t]), eps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = losses(DiffusionConfig(), lambda x_t, _t: half, x_0, torch.tensor([t]), eps)
    assert mixed.loss.dtype == torch.float32
    assert bool(mixed.loss.isfinite().all())
    assert torch.equal(mixed.loss, plain.loss)


# ---------------------------------------------------------------- gradients


def gradients(config: DiffusionConfig, t: int, golden_image: Tensor, golden_noise: Tensor) -> dict[str, tuple[float, float]]:
    """Size of the gradient of each term with respect to the network's eps and to its v."""
    x_0, eps, out = case(torch.float32, golden_image, golden_noise)
    found = {}
    for name in ("l_simple", "l_vlb", "loss"):
        leaf = out.clone().requires_grad_()
        terms = losses(config, lambda x_t, _t, leaf=leaf: leaf, x_0, torch.tensor([t]), eps)
        getattr(terms, name).sum().backward()
        assert leaf.grad is not None
        assert bool(leaf.grad.isfinite().all())
        found[name] = (float(leaf.grad[:, :3].abs().sum()), float(leaf.grad[:, 3:].abs().sum()))
    return found


def test_a_process_that_was_first_used_without_gradients_still_trains(golden_image: Tensor, golden_noise: Tensor) -> None:
    x_0, eps, out = case(torch.float32, golden_image, golden_noise)
    config, leaf = DiffusionConfig(), out.clone().requires_grad_()
    process = make_process(config)
    with torch.inference_mode():
        training_losses(process, lambda x_t, _t: leaf, x_0, torch.tensor([5]), eps)
    training_losses(process, lambda x_t, _t: leaf, x_0, torch.tensor([5]), eps).loss.sum().backward()
    assert leaf.grad is not None


@pytest.mark.parametrize("t", [0, 1, 100, 3999])
def test_with_stop_gradient_the_bound_teaches_the_variance_only(t: int, golden_image: Tensor, golden_noise: Tensor) -> None:
    found = gradients(DiffusionConfig(stop_gradient=True), t, golden_image, golden_noise)
    assert found["l_vlb"][0] == 0.0
    assert found["l_vlb"][1] > 0.0
    assert found["l_simple"][0] > 0.0
    assert found["l_simple"][1] == 0.0
    assert found["loss"][0] == found["l_simple"][0]


@pytest.mark.parametrize("t", [0, 1, 100, 3999])
@pytest.mark.parametrize("config", [DiffusionConfig(stop_gradient=False), DiffusionConfig(objective="vlb", stop_gradient=True)])
def test_without_stop_gradient_and_under_l_vlb_the_bound_teaches_the_mean_too(
    config: DiffusionConfig, t: int, golden_image: Tensor, golden_noise: Tensor
) -> None:
    found = gradients(config, t, golden_image, golden_noise)
    assert found["l_vlb"][0] > 0.0
    assert found["l_vlb"][1] > 0.0
    assert found["l_simple"][1] == 0.0


# ---------------------------------------------------------------- the discretised likelihood


@pytest.mark.parametrize("log_scale", [-5.0, -3.0, -1.0, 0.0, 1.0])
@pytest.mark.parametrize("mean", [-1.3, -1.0, -0.31, 0.0, 0.998, 1.5])
def test_the_discretised_likelihood_sums_to_one_over_the_256_levels(mean: float, log_scale: float) -> None:
    x_0 = (torch.arange(256).double() / 127.5 - 1).unsqueeze(0)
    log_mass = discretized_gaussian_log_likelihood(x_0, torch.full_like(x_0, mean), torch.full_like(x_0, log_scale))
    assert float(log_mass.exp().sum()) == pytest.approx(1.0, abs=256 * 1e-12)  # no level has less than 1e-12


def test_the_approximate_normal_cdf_is_within_the_stated_error() -> None:
    x = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    error = (approximate_normal_cdf(x) - torch.special.ndtr(x)).abs().max()
    assert 1e-4 < float(error) < 1.8e-4


def test_the_kl_of_two_gaussians_is_the_one_of_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    mean_q, log_q, mean_p, log_p = torch.randn(4, 50, dtype=torch.float64, generator=generator)
    q, p = (torch.distributions.Normal(m, (lv / 2).exp()) for m, lv in ((mean_q, log_q), (mean_p, log_p)))
    torch.testing.assert_close(normal_kl(mean_q, log_q, mean_p, log_p), torch.distributions.kl_divergence(q, p))
    assert bool((normal_kl(mean_q, log_q, mean_q, log_q) == 0).all())
