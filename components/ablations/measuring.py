"""Which measures a trial is given, and by which step they are taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from components.steps.train import RESULT
from evaluation.ablations.definitions.ablation import Measure, Trial
from evaluation.ablations.definitions.request import AblationRequest
from evaluation.ablations.trials import joint, measures
from evaluation.ablations.trials.record import TrialModel, TrialRecord, find_trial_model
from training import storage
from training.config.experiment import SamplingMethod
from training.console import say
from training.cost.estimate import TRAINING_PASSES, count_macs
from training.data.format.shards import read_manifest


def measure(request: AblationRequest, trial: Trial, item: Mapping[str, Any], run_uri: str, resources: Mapping[str, Any]) -> TrialRecord:
    """Takes everything of a trial.

    Args:
        request: The ablation.
        trial: The trial.
        item: Of the plan.
        run_uri: Its run's directory, or a checkpoint's.
        resources: How many processes draw samples.
    """
    found: dict[str, Any] = {}
    best = request.ablation().looks_at == "best"
    if "final" in trial.measures:  # first: it chooses the checkpoint that the others look at
        found["final"] = _final(run_uri, item, resources, best=best)
    subject = find_trial_model(run_uri, item["data_uri"], item["reference_uri"], best=best)
    counts = request.counts()
    num_images = measures.num_likelihood_images(subject.experiment)
    takes: dict[Measure, Callable[[], dict[str, Any]]] = {
        "sampling-steps": lambda: measures.distances_by_steps(subject, counts, ("ancestral", "ddim")),
        "figure-1": lambda: measures.distances_by_steps(subject, counts, (_figure_1_sampler(subject),)),
        "likelihood-steps": lambda: measures.likelihood_by_steps(subject, counts, num_images),
        "bound": lambda: measures.bound_terms(subject, num_images),
        "samples": lambda: measures.samples(subject),
        "history": lambda: measures.score_history(subject),
        "history-likelihood": lambda: measures.likelihood_history(subject, num_images),
        "raw-weights": lambda: measures.distances_by_weights(subject),
    }
    for name in trial.measures:
        if name != "final":
            found[name] = takes[name]()
    if "history" in found:
        found["flops_per_step"] = _flops_per_step(subject)
    manifest = read_manifest(storage.join(item["data_uri"], "train"))
    say(f"{trial.label}: measured {', '.join(trial.measures)} of step {subject.step:,} ({subject.weights})")
    return TrialRecord(
        label=trial.label,
        role=trial.role,
        values=trial.values,
        preset=trial.preset,
        own=trial.own,
        run_uri=subject.run_uri,
        checkpoint_uri=subject.checkpoint_uri,
        weights=subject.weights,
        step=subject.step,
        experiment=subject.experiment.to_dict(),
        data={
            "name": manifest.name,
            "digest": manifest.content_digest,
            "num_images": manifest.num_images,
            "image_size": manifest.image_size,
        },
        measures=found,
    )


def measure_several(request: AblationRequest, items: Sequence[Mapping[str, Any]]) -> TrialRecord:
    """Takes what needs several trials at once."""
    from evaluation.ablations.trials.record import read_record

    subjects = {}
    records = []
    for item in items:
        record = read_record(item["ablation_uri"], item["label"])
        assert record is not None, "the caller has seen that every trial is done"
        records.append(record)
        subjects[record.role] = TrialModel(
            run_uri=record.run_uri,
            checkpoint_uri=record.checkpoint_uri,
            weights=record.weights,
            step=record.step,
            experiment=find_trial_model(record.checkpoint_uri, "", "").experiment,
            data_uri=item["data_uri"],
            reference_uri=item["reference_uri"],
        )
    taken = joint.ensemble(subjects) if request.ablation().joint == "ensemble" else joint.cascade(subjects)
    say(f"{taken.label}: measured")
    return TrialRecord.from_dict({**taken.to_dict(), "data": records[0].data})


def _final(run_uri: str, item: Mapping[str, Any], resources: Mapping[str, Any], *, best: bool) -> dict[str, Any]:
    """The reported evaluation; of the best of a run of ours with all that belongs to it: the choice, MLflow, the registry."""
    if best and storage.exists(storage.join(run_uri, RESULT)):
        from components.steps.evaluate import evaluate_run

        uri = evaluate_run(run_uri, item["data_uri"], item["reference_uri"], resources)
        stored: dict[str, Any] = storage.read_json(uri)
        return stored
    from evaluation.evaluate.options import EvaluationOptions
    from evaluation.evaluate.run import evaluate
    from evaluation.sampling.trained_model import ModelSpec
    from evaluation.selection.final_choice import stored_result

    subject = find_trial_model(run_uri, item["data_uri"], item["reference_uri"])
    spec = ModelSpec(checkpoint_uri=subject.checkpoint_uri, weights=subject.weights)
    options = EvaluationOptions(result_name=f"ablation-{subject.step:08d}-{subject.weights}", num_workers=int(resources["num_workers"]))
    kept = stored_result(spec, item["data_uri"], item["reference_uri"], options)
    return (kept or evaluate(spec, item["data_uri"], item["reference_uri"], options=options)).to_dict()


def _flops_per_step(subject: TrialModel) -> float:
    """What a training step takes: the axis of the main paper's figures of scaling."""
    macs = sum(count_macs(subject.experiment).values())
    return 2.0 * TRAINING_PASSES * macs * subject.experiment.optim.global_batch_size


def _figure_1_sampler(subject: TrialModel) -> SamplingMethod:
    """Figure 1 draws by DDIM from L_simple's models, by the ancestral sampler from those that learned a variance."""
    return "ancestral" if subject.experiment.diffusion.variance == "learned_range" else "ddim"
