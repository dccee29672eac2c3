"""The paper's tables to reproduce: each names the experiments of one table, whose presets have its numbers.

A reproduction is an ablation that exists at the paper's scale alone. A row's role is the rest of its preset's name, and a published
checkpoint that was imported may stand in for a row's training. Supplement table 1 is the ablation hybrid-weight, and supplement
table 2 the ablation two-stage.
"""

from __future__ import annotations

from evaluation.ablations.definitions.ablation import Ablation, Setting

_MAIN_ROWS = ("simple-linear-t1000", "simple-linear", "hybrid-linear", "simple-cosine", "hybrid-cosine", "vlb-cosine")
_MAIN_COLUMNS = ("diffusion.num_timesteps", "diffusion.schedule", "diffusion.objective")


def _table(name: str, title: str, source: str, varied: tuple[str, ...], rows: tuple[str, ...]) -> Ablation:
    data = name.partition("-")[0]
    paper = tuple(Setting(preset=f"{data}-{row}", overrides={}, role=row) for row in rows)
    return Ablation(name=name, title=title, source=source, varied=varied, paper=paper, tiny=(), named_runs=True)


REPRODUCTIONS: dict[str, Ablation] = {
    table.name: table
    for table in (
        _table("cifar10-table2", "CIFAR-10: timesteps, schedule and objective", "Main paper, table 2", _MAIN_COLUMNS, _MAIN_ROWS),
        _table(
            "imagenet64-table1",
            "ImageNet 64x64: timesteps, schedule and objective",
            "Main paper, table 1, 200K updates",
            _MAIN_COLUMNS,
            _MAIN_ROWS,
        ),
        _table(
            "imagenet64-table1-1500k",
            "ImageNet 64x64: L_hybrid and L_vlb after 1.5M updates",
            "Main paper, table 1",
            ("diffusion.objective",),
            ("hybrid-cosine-1500k", "vlb-cosine-1500k"),
        ),
        _table(
            "imagenet64-conditional",
            "ImageNet 64x64, class-conditional",
            "Main paper, class-conditional table, 250 steps",
            ("model.model_channels", "optim.global_batch_size"),
            ("cond-hybrid-cosine-small", "cond-hybrid-cosine-large"),
        ),
    )
}
"""The reproductions by name."""
