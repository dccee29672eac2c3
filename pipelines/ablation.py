"""The ablation pipeline: one experiment, a named grid of its settings, one table.

    preprocess -> reference -> plan -> for each trial at once (train -> evaluate) -> table

The table is made whatever becomes of the trials: a failed one is named there, takes no other down, and is all that
runs again when the pipeline does. (KFP marks the run as failed then, which it is.)
"""

from kfp import dsl

from components.evaluate import evaluate
from components.plan_ablation import plan_ablation
from components.preprocess import preprocess
from components.reference import reference
from components.tabulate_ablation import tabulate_ablation
from components.train import train
from pipelines.resources import place
from training import ablations, presets

PARALLEL_TRIALS = 4
"""Trials at once. A number in the pipeline, since KFP takes no parameter for it."""


@dsl.pipeline(
    name="iddpm-ablation",
    display_name="iDDPM: ablation",
    description="Trains and evaluates every point of a named grid over one experiment, and puts them in one table.",
)
def ablation_pipeline(
    ablation_name: str = "hybrid-weight",
    experiment_preset: str = "digits-hybrid-cosine",
    experiment_overrides: list[str] = [],  # noqa: B006 - KFP wants a literal
    data_uri: str = "",
    data_source: str = "",
    data_cpu: str = "2",
    data_memory: str = "4Gi",
    train_num_workers: int = 1,
    train_num_gpus_per_worker: int = 0,
    train_microbatch_size: int = 0,
    train_precision: str = "fp32",
    train_use_compile: bool = False,
    train_cpu: str = "4",
    train_memory: str = "8Gi",
    train_gpus: int = 0,
    evaluate_cpu: str = "2",
    evaluate_memory: str = "4Gi",
    storage_root_uri: str = "s3://iddpm",
    tracking_experiment: str = "iddpm",
) -> str:
    """Runs an ablation.

    Args:
        ablation_name: Which grid.
        experiment_preset: The experiment that it varies; `iddpm presets` lists them.
        experiment_overrides: What to change in every trial, a JSON list like ["optim.num_steps=4000"].
        data_uri: The data set's directory; empty puts it under storage_root_uri, named by name, size and resize.
        data_source: Where the images come from; empty is the data set's own name.
        data_cpu: Cores of the preprocess, reference and plan steps.
        data_memory: Memory of the preprocess, reference and plan steps.
        train_num_workers: Data-parallel training processes of a trial.
        train_num_gpus_per_worker: 1 trains on GPUs, 0 on processors.
        train_microbatch_size: Images that a worker passes through the network at once; 0 takes its whole share.
        train_precision: Of the network in training (fp32, or bf16 for GPUs).
        train_use_compile: Whether to pass the network through torch.compile.
        train_cpu: Cores of a trial's train step.
        train_memory: Memory of a trial's train step.
        train_gpus: GPUs of a trial's train step.
        evaluate_cpu: Cores of a trial's evaluate step, and of the table.
        evaluate_memory: Memory of a trial's evaluate step, and of the table.
        storage_root_uri: Where data sets, runs and reports are kept.
        tracking_experiment: MLflow's experiment.

    Returns:
        URI of the ablation's directory.
    """
    data = place(
        preprocess(
            experiment_preset=experiment_preset,
            experiment_overrides=experiment_overrides,
            data_uri=data_uri,
            storage_root_uri=storage_root_uri,
            source=data_source,
        ),
        cpu=data_cpu,
        memory=data_memory,
    )
    statistics = place(
        reference(
            experiment_preset=experiment_preset,
            experiment_overrides=experiment_overrides,
            data_uri=data.outputs["Output"],
            storage_root_uri=storage_root_uri,
        ),
        cpu=data_cpu,
        memory=data_memory,
    )
    plan = place(
        plan_ablation(
            ablation_name=ablation_name,
            experiment_preset=experiment_preset,
            experiment_overrides=experiment_overrides,
            data_uri=data.outputs["Output"],
            reference_uri=statistics.output,
        ),
        cpu=data_cpu,
        memory=data_memory,
    ).set_display_name("plan")
    with dsl.ParallelFor(plan.output, parallelism=PARALLEL_TRIALS, name="trials") as trial:
        trained = place(
            train(
                experiment_preset=experiment_preset,
                experiment_overrides=trial.overrides,
                data_uri=trial.data_uri,
                reference_uri=trial.reference_uri,
                storage_root_uri=storage_root_uri,
                tracking_experiment=tracking_experiment,
                num_workers=train_num_workers,
                num_gpus_per_worker=train_num_gpus_per_worker,
                microbatch_size=train_microbatch_size,
                precision=train_precision,
                use_compile=train_use_compile,
            ),
            cpu=train_cpu,
            memory=train_memory,
            shared_memory="2Gi",
        )
        trained.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(train_gpus)
        scored = place(
            evaluate(run_uri=trained.output, data_uri=trial.data_uri, reference_uri=trial.reference_uri),
            cpu=evaluate_cpu,
            memory=evaluate_memory,
        )
    table = place(
        tabulate_ablation(
            ablation_name=ablation_name,
            experiment_preset=experiment_preset,
            experiment_overrides=experiment_overrides,
            data_uri=data.outputs["Output"],
            storage_root_uri=storage_root_uri,
            tracking_experiment=tracking_experiment,
        ),
        cpu=evaluate_cpu,
        memory=evaluate_memory,
    ).set_display_name("table")
    table.after(scored).ignore_upstream_failure()
    return table.outputs["Output"]  # type: ignore[no-any-return]


PIPELINE = ablation_pipeline
LITERALS = {
    "ablation_name": ablations.names(),
    "experiment_preset": presets.names(),
    "train_precision": ("fp32", "bf16"),
}
