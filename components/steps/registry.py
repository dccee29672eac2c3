"""The steps of the pipelines that a Ray cluster can do. Those of ablations are in `components.ablations.registry`."""

from __future__ import annotations

from components.launch.step import Step

PREPROCESS = Step(
    name="preprocess",
    function="components.steps.preprocess:prepare_data",
    files_argument="storage_root_uri",
    find_log="components.steps.preprocess:find_log",
    stage="data",
)
REFERENCE = Step(
    name="reference",
    function="components.steps.reference:make_reference",
    files_argument="storage_root_uri",
    find_log="components.steps.reference:find_log",
    is_parallel=False,
)
TRAIN = Step(
    name="train",
    function="components.steps.train:train_run",
    files_argument="storage_root_uri",
    run_files="components.steps.runs:run_files",
    stage="train",
)
EVALUATE = Step(name="evaluate", function="components.steps.evaluate:evaluate_run", files_argument="run_uri")
COMPARE = Step(name="compare", function="components.steps.compare:compare_models", files_argument="storage_root_uri")
SCORE = Step(name="score", function="components.steps.nightly:score_model", files_argument="storage_root_uri")
