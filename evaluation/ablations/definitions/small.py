"""The scale "small" of the paper's ablations: five seeds of each in hours on two cores, with the plan that was registered before any run.

The plan says for every claim which number decides it, and on which side of which level the paper's answer lies. The stopping rule
is the same for all: every trial is trained with every seed, whatever the first ones show, and with no other. No setting was changed
after a result at this scale was seen.
"""

from __future__ import annotations

from evaluation.ablations.definitions.ablation import PlannedClaim, Setting, SmallScale, grid

_HYBRID = "digits-tiny-hybrid-cosine"
_FD, _BITS = "FD(digits-classifier)", "bits/dim of test images"

# Ten times the length of the tiny scale, at half its rate: L_vlb learns slowly, and its gradient is noisy.
_LONG = {"optim.num_steps": 4000, "optim.learning_rate": 0.001, "optim.checkpoint_interval": 1000, "optim.ema_decays": [0.995, 0.999]}
_BATCHES = (
    {"optim.global_batch_size": 16, "optim.learning_rate": 0.0004, "optim.num_steps": 3200, "optim.checkpoint_interval": 800},
    {"optim.global_batch_size": 32, "optim.learning_rate": 0.002, "optim.num_steps": 1600, "optim.checkpoint_interval": 400},
)
_FEW_IMAGES = {"data.name": "digits-few", "optim.num_steps": 2000, "optim.checkpoint_interval": 200}
_CONDITIONAL = {
    "model.class_conditional": True,
    "optim.num_steps": 4000,
    "optim.checkpoint_interval": 400,
    "optim.ema_decays": [0.9, 0.98, 0.995],
}
_WIDTH_STEPS = {"optim.num_steps": 800, "optim.checkpoint_interval": 200}


def _roles(**presets: str) -> tuple[Setting, ...]:
    return tuple(Setting(preset=f"digits-tiny-{name}", overrides=_LONG, role=role.replace("_", "-")) for role, name in presets.items())


def _less(text: str, first: str, second: str, number: str = _FD) -> PlannedClaim:
    return PlannedClaim(text=text, number=f"{number} of {first}, less that of {second}")


def _rise(text: str, number: str, level: float) -> PlannedClaim:
    return PlannedClaim(text=text, number=f"{number} at the last checkpoint over the least", level=level, above=True)


_HYBRID_AND_VLB = _roles(hybrid="hybrid-cosine", vlb="vlb-cosine")
_RATIO = "the mean logarithm of theta_hybrid's terms of the bound over theta_vlb's, "

SMALL: dict[str, SmallScale] = {
    "hybrid-weight": SmallScale(
        settings=grid(_HYBRID, {"diffusion.stop_gradient": (True, False), "diffusion.vlb_weight": (0.001, 0.01)}),
        reason="One seed of 400 updates shows both effects at twelve standard errors or more, so the seeds repeat that length.",
        claims=(
            _less("The stop-gradient improves sample quality.", "the mean of both lambdas with it", "the mean without"),
            _less("The stop-gradient reduces the sensitivity to lambda.", "the change by lambda with it", "the change without"),
        ),
    ),
    "objective-schedule": SmallScale(
        settings=tuple(
            Setting(preset=f"digits-tiny-{row}", overrides=_LONG)
            for row in ("simple-linear-t100", "simple-linear", "hybrid-linear", "simple-cosine", "hybrid-cosine", "vlb-cosine")
        ),
        reason="L_vlb needs many updates, and more timesteps pay only where the model is good.",
        claims=(
            _less("L_hybrid has a better likelihood than L_simple.", "L_hybrid", "L_simple", _BITS),
            _less("L_vlb has a better likelihood than L_hybrid.", "L_vlb", "L_hybrid", _BITS),
            _less("L_vlb has worse samples than L_hybrid.", "L_hybrid", "L_vlb"),
            _less("The cosine schedule improves the likelihood of L_hybrid.", "cosine", "linear", _BITS),
            _less("More timesteps improve the likelihood of L_simple, linear.", "T = 400", "T = 100", _BITS),
        ),
    ),
    "lsun-batch-size": SmallScale(
        settings=tuple(
            Setting(
                preset=f"digits-tiny-{objective}-linear",
                overrides={"diffusion.num_timesteps": 100, "evaluation.sampling.spacing": "25", **batch},
            )
            for objective in ("hybrid", "simple")
            for batch in _BATCHES
        ),
        reason="Four times the length of the tiny scale, where both batch sizes are still far from their best.",
        claims=(
            _less("With few steps (5) DDIM outperforms L_hybrid.", "DDIM, better batch", "L_hybrid, better batch"),
            _less("With many steps (40) L_hybrid outperforms DDIM.", "L_hybrid, better batch", "DDIM, better batch"),
            _less("DDIM benefits from the smaller batch and learning rate (5 steps).", "batch 16", "batch 32"),
            _less("L_hybrid takes advantage of the larger batch and learning rate (40 steps).", "batch 32", "batch 16"),
        ),
    ),
    "cifar10-dropout": SmallScale(
        settings=tuple(
            Setting(preset=f"digits-tiny-hybrid-{schedule}", overrides={**_FEW_IMAGES, "model.dropout": dropout})
            for schedule in ("linear", "cosine")
            for dropout in (0.1, 0.2, 0.3)
        ),
        reason="Overfitting needs few images and many updates: 200 images are seen 320 times each.",
        claims=(
            _rise("The linear model with dropout 0.1 overfits.", _BITS, 1.002),
            _rise("The cosine model with dropout 0.1 overfits.", _BITS, 1.002),
            PlannedClaim(
                text="The cosine schedule reaches its optimum, and then overfits, more quickly than the linear one.",
                number="the step of the least bits/dim with dropout 0.1 of cosine, less that of linear, once the earlier one rises again",
            ),
            _less("Of 0.1, 0.2 and 0.3, dropout 0.1 works best for the linear schedule.", "dropout 0.1", "the best other"),
            _less("Of 0.1, 0.2 and 0.3, dropout 0.3 works best for the cosine schedule.", "dropout 0.3", "the best other"),
        ),
    ),
    "cond64-overfitting": SmallScale(
        settings=grid(_HYBRID, {"model.dropout": (0.0, 0.1, 0.3)}, **_CONDITIONAL),
        reason="The 1,497 images are seen 85 times each, seven times as often as at the tiny scale.",
        claims=(
            *(
                _rise(f"Over the course of training the distance becomes worse, {words}.", "the score beside training", 1.05)
                for words in ("without dropout", "with dropout 0.1 too", "with dropout 0.3 too")
            ),
            _less("A small amount of dropout improves the best attainable distance.", "the best with dropout 0.1", "the best without"),
            PlannedClaim(
                text="With dropout it takes longer to get to the best.",
                number="the step of the best score without dropout, less that with dropout 0.1, once the earlier one rises again",
            ),
            *(
                _less(
                    f"An average of the weights is better than the weights that are trained (dropout {dropout}).",
                    "the best average",
                    "the weights themselves",
                )
                for dropout in ("0.0", "0.1", "0.3")
            ),
        ),
    ),
    "width": SmallScale(
        settings=tuple(
            Setting(preset=_HYBRID, overrides={**_WIDTH_STEPS, "model.model_channels": width, "optim.learning_rate": rate})
            for width, rate in ((32, 0.002), (64, 0.001414), (96, 0.001155))
        ),
        reason="Four times the length of the tiny scale, so that the narrow model is not only the slower one.",
        claims=(
            _less("A wider model has the better distance.", "C = 96", "C = 32"),
            _less("A wider model has the better likelihood.", "C = 96", "C = 32", _BITS),
        ),
    ),
    "sampling-steps": SmallScale(
        settings=_roles(hybrid="hybrid-cosine", hybrid_linear="hybrid-linear", simple="simple-cosine"),
        reason="The runs of objective-schedule: DDIM and the ancestral sampler are closer than the error of one seed.",
        claims=(
            _less("With the fewest steps (5 of 400) DDIM is better than the ancestral sampler.", "DDIM", "ancestral"),
            _less(
                "With many steps (100 of 400) the ancestral sampler with a learned variance is better than DDIM.",
                "the ancestral sampler",
                "DDIM",
            ),
            _less("With few steps (10 of 400) the cosine schedule is better than the linear one.", "cosine", "linear"),
            _less("With few steps (10 of 400) a learned variance is better than the fixed one of L_simple.", "L_hybrid", "L_simple"),
        ),
    ),
    "likelihood-steps": SmallScale(
        settings=_HYBRID_AND_VLB,
        reason="The runs of objective-schedule.",
        claims=tuple(
            _less(
                f"Adding every t from 1 to T/K repairs the likelihood of 5 strided steps ({role}).",
                "the spacing with them",
                "the stride alone",
                _BITS,
            )
            for role in ("hybrid", "vlb")
        ),
    ),
    "vlb-ratio": SmallScale(
        settings=_HYBRID_AND_VLB,
        reason="The runs of objective-schedule: L_vlb wins at both ends only once it has learned.",
        claims=(
            PlannedClaim(
                text="theta_vlb is better at the start of the diffusion process.", number=f"{_RATIO}over the first 10 timesteps", above=True
            ),
            PlannedClaim(text="theta_hybrid is better throughout the middle.", number=f"{_RATIO}over the timesteps between"),
            PlannedClaim(
                text="theta_vlb is better at the end of the diffusion process.", number=f"{_RATIO}over the last 10 timesteps", above=True
            ),
        ),
    ),
    "ensemble": SmallScale(
        settings=_HYBRID_AND_VLB,
        reason="The runs of objective-schedule. The paper's FIDs of the second claim differ by 4%, less than 500 samples and five "
        "seeds can be expected to resolve.",
        claims=(
            _less("The ensemble has a better likelihood than both of its parts.", "the ensemble", "the better part", _BITS),
            _less("The ensemble's samples are slightly worse than theta_hybrid's.", "theta_hybrid", "the ensemble"),
            _less("The ensemble's samples are better than theta_vlb's.", "the ensemble", "theta_vlb"),
        ),
    ),
    "same-noise": SmallScale(
        settings=_HYBRID_AND_VLB,
        reason="The runs of objective-schedule.",
        claims=(
            PlannedClaim(
                text="From the same noise L_hybrid and L_vlb draw related images (digits).",
                number="the correlation of images from the same noise, less that of images from different noise",
                above=True,
            ),
        ),
    ),
    "two-stage": SmallScale(
        settings=(),
        reason="images that two cores can learn are too small for one model to be harder to train than two: the paper's effect is of "
        "256 pixels. `iddpm ablate two-stage --scale paper` decides it on GPUs",
        claims=(_less("Two stages are better than a single one.", "two stages", "a single stage"),),
    ),
}
"""The small scale of each ablation."""
