"""The step of a tuning that a Ray cluster can do."""

from __future__ import annotations

from components.launch.step import Step

TUNE = Step(
    name="tune",
    function="components.tuning.steps:tune",
    files_argument="storage_root_uri",
    run_files="components.tuning.directory:tune_files",
    stage="train",
)
