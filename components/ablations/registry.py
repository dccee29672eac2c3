"""The steps of an ablation that a Ray cluster can do."""

from __future__ import annotations

from components.launch.step import Step

MEASURE = Step(name="measure", function="components.ablations.steps:measure_trial", files_argument="run_uri")
JOINT = Step(name="joint", function="components.ablations.steps:measure_joint", files_argument="ablation_uri")
