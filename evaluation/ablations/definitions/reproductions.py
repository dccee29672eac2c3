"""The paper's tables to reproduce: each names the experiments of one table, whose presets have its numbers.

A reproduction is an ablation that exists at the paper's scale alone. A row's role is the rest of its preset's name, and a published
checkpoint that was imported may stand in for a row's training. Supplement table 1 is the ablation hybrid-weight, and supplement
table 2 the ablation two-stage.
"""

from __future__ import annotations

from evaluation.ablations.definitions.ablation import Ablation, Setting


def _rows(data: str, *names: str) -> tuple[Setting, ...]:
    return tuple(Setting(preset=f"{data}-{name}", overrides={}, role=name) for name in names)


_MAIN_ROWS = ("simple-linear-t1000", "simple-linear", "hybrid-linear", "simple-cosine", "hybrid-cosine", "vlb-cosine")
_MAIN_COLUMNS = ("diffusion.num_timesteps", "diffusion.schedule", "diffusion.objective")

REPRODUCTIONS: dict[str, Ablation] = {
    table.name: table
    for table in (
        Ablation(
            name="cifar10-table2",
            title="CIFAR-10: timesteps, schedule and objective",
            source="Main paper, table 2",
            varied=_MAIN_COLUMNS,
            paper=_rows("cifar10", *_MAIN_ROWS),
            tiny=(),
            named_runs=True,
        ),
        Ablation(
            name="imagenet64-table1",
            title="ImageNet 64x64: timesteps, schedule and objective",
            source="Main paper, table 1, 200K updates",
            varied=_MAIN_COLUMNS,
            paper=_rows("imagenet64", *_MAIN_ROWS),
            tiny=(),
            named_runs=True,
        ),
        Ablation(
            name="imagenet64-table1-1500k",
            title="ImageNet 64x64: L_hybrid and L_vlb after 1.5M updates",
            source="Main paper, table 1",
            varied=("diffusion.objective",),
            paper=_rows("imagenet64", "hybrid-cosine-1500k", "vlb-cosine-1500k"),
            tiny=(),
            named_runs=True,
        ),
        Ablation(
            name="imagenet64-conditional",
            title="ImageNet 64x64, class-conditional",
            source="Main paper, class-conditional table, 250 steps",
            varied=("model.model_channels", "optim.global_batch_size"),
            paper=_rows("imagenet64", "cond-hybrid-cosine-small", "cond-hybrid-cosine-large"),
            tiny=(),
            named_runs=True,
        ),
    )
}
"""The reproductions by name."""
