"""The cost of an ablation in hours of a card: its trainings, and their measures."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.ablations.definitions.ablation import Trial
from evaluation.ablations.definitions.request import AblationRequest
from training.config.experiment import Experiment
from training.config.spacing import likelihood_spacing
from training.cost.accelerators import speed_on
from training.cost.estimate import count_forward_passes, estimate, likelihood_passes

NUM_PAIRED_IMAGES = 100
"""Images that are drawn from each model for comparisons on the same noise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialCost:
    """Hours of one card: `training` with the scores beside it, and `measuring`."""

    training: float
    measuring: float

    def __add__(self, other: TrialCost) -> TrialCost:
        return TrialCost(training=self.training + other.training, measuring=self.measuring + other.measuring)

    def describe(self, card: str, *, price_per_hour: float | None = None) -> str:
        """Return the hours, and the price where an hour's is given, in one line."""
        text = f"{_hours(self.measuring)} of measuring on one {'core' if card.upper() == 'CPU' else card}"
        if self.training:
            text = f"{_hours(self.training)} of training, {text}"
        if price_per_hour is not None:
            text += f", {(self.training + self.measuring) * price_per_hour:,.2f} at {price_per_hour:g} an hour"
        return text


def trial_cost(request: AblationRequest, trial: Trial, card: str = "H100") -> TrialCost:
    """Estimate the cost of a whole trial on a card of `CARDS`, or refuse the card; an evaluation of a run has no training."""
    experiment = trial.experiment
    cost = estimate(experiment, card, with_memory=False)
    trains = request.ablation().trains and not trial.run_uri
    speed = speed_on(cost.card, "sampling", cost.forward_macs)
    hours_per_pass = cost.forward_flops / speed.flops_per_second / 3600
    return TrialCost(
        training=cost.phases["training"].card_hours + cost.phases["scoring"].card_hours if trains else 0.0,
        measuring=_measured_passes(request, trial, experiment) * hours_per_pass,
    )


def joint_cost(request: AblationRequest, card: str = "H100") -> TrialCost:
    """Estimate the cost of the joint measurement: one more reported evaluation a seed; for a cascade, the samples of both stages."""
    joint = request.ablation().joint
    trials = {trial.role: trial for trial in request.trials()}
    hours = 0.0
    for role in {"none": (), "ensemble": ("hybrid",), "cascade": ("first-stage", "second-stage")}[joint]:
        phases = estimate(trials[role].experiment, card, with_memory=False).phases
        hours += phases["sampling"].card_hours
        if joint == "ensemble" and "likelihood" in phases:
            hours += phases["likelihood"].card_hours
    return TrialCost(training=0.0, measuring=hours * request.seeds)


def num_curve_images(experiment: Experiment) -> int:
    """Return the number of images of a likelihood curve: fewer than for a reported number, because every step count evaluates them all."""
    return 100 if experiment.data.name.startswith("digits") else 1000


def _measured_passes(request: AblationRequest, trial: Trial, experiment: Experiment) -> float:
    """Return the forward passes of all measures of the trial; one pass takes one image."""
    num_timesteps, evaluation = experiment.diffusion.num_timesteps, experiment.evaluation
    counts = [count for count in request.counts() if count <= num_timesteps]
    images, known = num_curve_images(experiment), count_forward_passes(experiment)
    choice = known.get("choice", 0) if request.ablation().checkpoint == "best" else 0
    passes = {
        "final": choice + known["sampling"] + known.get("likelihood", 0),
        "sampling-steps": evaluation.num_samples * (sum(counts) + sum(count for count in counts if count < num_timesteps)),
        "figure-1": evaluation.num_samples * sum(counts),
        "likelihood-steps": images
        * sum(count + (len(likelihood_spacing(num_timesteps, count)) if count < num_timesteps else 0) for count in counts),
        "bound": images * num_timesteps,
        "samples": NUM_PAIRED_IMAGES * (known["sampling"] // evaluation.num_samples),
        "history": 0,
        "history-likelihood": images
        * likelihood_passes(evaluation, num_timesteps)
        * (experiment.optim.num_steps // experiment.optim.checkpoint_interval),
        "raw-weights": known["sampling"] * (1 + len(experiment.optim.ema_decays)),
    }
    return float(sum(passes[measure] for measure in trial.measures))


def _hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.0f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 0.1 else "seconds"
