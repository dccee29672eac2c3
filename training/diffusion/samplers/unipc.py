"""UniPC of orders 1 to 3: a predictor, and a corrector that uses the next network evaluation a second time.

The predictor UniP draws a polynomial through the last predictions of x_0 and solves the ODE of
`training.diffusion.samplers.multistep` for it. When the network has been evaluated at the predicted x_t, the corrector UniC repeats the
step with that prediction as a further node, which costs no evaluation and raises the order by one.

Source: Zhao et al. 2023, "UniPC: a unified predictor-corrector framework for fast sampling of diffusion models", algorithms 5 and 6.
"""

from __future__ import annotations

import math

from torch import Tensor

from training.config.experiment import MultistepOrder, SamplingConfig, UniPCVariant
from training.diffusion.process import GaussianProcess, ModelPrediction
from training.diffusion.samplers.multistep import exponential_step, half_log_snr, polynomial_weights
from training.diffusion.samplers.sampler import Sampler, Visit, Visits


class UniPC(Sampler):
    """The corrector of the step before and the predictor of this one, of one network evaluation; a learned variance is not used.

    The first steps have fewer earlier predictions and are of lower order; so are the last ones, as in the authors' code. With one
    difference to go by, its weight is not solved for but taken as B(h) / 2.
    """

    def __init__(self, order: MultistepOrder = 2, variant: UniPCVariant = "B2") -> None:
        """Set the predictor's order and B(h): h for "B1", 1 - e^-h for "B2" (the paper's e^h - 1 for x_0 in place of eps)."""
        self.order, self.variant = order, variant
        self.num_visits = order
        self.description = f"UniPC-{order}, {variant}"

    def correct(self, process: GaussianProcess, x_t: Tensor, k: int, prediction: ModelPrediction, visits: Visits) -> Tensor:
        """Return x_t by the step that led to it, with the prediction at x_t as a further node."""
        if not visits:
            return x_t
        nodes = [(visits[i].prediction.x_0, float(process.alpha_bars[k + 1 + i])) for i in range(self._order(k + 1, len(visits) - 1))]
        return self._solve(visits[0].x, [*nodes, (prediction.x_0, float(process.alpha_bars[k]))], float(process.alpha_bars[k]))

    def move(self, process: GaussianProcess, x_t: Tensor, k: int, prediction: ModelPrediction, noise: Tensor, visits: Visits) -> Tensor:
        """Return the predictor's x_{t-1}, or the predicted x_0 in the last step."""
        if k == 0:
            return prediction.x_0
        known = (Visit(x_t, prediction), *visits)
        nodes = [(known[i].prediction.x_0, float(process.alpha_bars[k + i])) for i in range(self._order(k, len(visits)))]
        return self._solve(x_t, nodes, float(process.alpha_bars[k - 1]))

    def _order(self, k: int, num_earlier: int) -> int:
        """Return the order of the step from k: at most one more than the earlier predictions, and than the steps that follow."""
        return min(self.order, num_earlier + 1, k + 1)

    def _solve(self, x: Tensor, nodes: list[tuple[Tensor, float]], alpha_bar_next: float) -> Tensor:
        """Return the solution for the polynomial through the nodes, which are predictions of x_0 with alpha_bar, x's own first."""
        (x_0, alpha_bar), *others = nodes
        result = exponential_step(x, x_0, alpha_bar, alpha_bar_next)
        if not others:
            return result
        start = half_log_snr(alpha_bar)
        h = half_log_snr(alpha_bar_next) - start
        places = [(half_log_snr(other) - start) / h for _, other in others]
        if len(others) == 1:
            b = h if self.variant == "B1" else -math.expm1(-h)
            weights = [0.5 * b / places[0]]
        else:
            weights = polynomial_weights(h, places)
        for weight, (other, _) in zip(weights, others, strict=True):
            result = result + math.sqrt(alpha_bar_next) * weight * (other - x_0)
        return result


def make_sampler(config: SamplingConfig) -> UniPC:
    """Return the sampler of the config."""
    return UniPC(config.order, config.unipc_variant)
