"""The trials of a tuning, one after the other: suggest, train with pruning, record. Whatever ends it, the same call goes on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from components.steps.runs import identify, read_result, require_not_deleting
from components.steps.train import train_run
from components.tuning.directory import PLAN, Plan, tune_files
from components.tuning.report import close_tuning, log_trials, make_report, open_tuning
from evaluation.tuning.optimiser import Pruner, suggest
from evaluation.tuning.record import State, TuningTrial, best_of, read_records, smallest_scores, write_record
from evaluation.tuning.request import TuneRequest
from evaluation.tuning.search import Axis, Value
from training import storage
from training.config.errors import UserError, in_one_line
from training.config.experiment import Experiment, Resources
from training.console import say
from training.distributed.cores import available_cores
from training.loop.interfaces import TrainingError

Train = Callable[[Experiment, str, Pruner | None], None]
"""Trains an experiment as the trial of that label."""

_NOT_SCORED = (
    "its run has no score by this protocol, as one that was trained before and scored by another; another seed of the experiment "
    "(--set seed=N) trains every trial anew"
)


def tune(
    request: Mapping[str, Any],
    data_uri: str,
    reference_uri: str,
    storage_root_uri: str,
    tracking_experiment: str,
    resources: Mapping[str, Any],
    pipeline_run_id: str = "",
    *,
    ray_address: str = "local",
) -> str:
    """Run the trials that are missing, and again those that failed; a failed trial stops no other. Return the tuning's directory.

    Args:
        request: A `TuneRequest` as a dictionary.
        data_uri: Data set with a `train` split.
        resources: Fields of `training.config.experiment.Resources`.
        ray_address: "local", or a Ray cluster's address.

    Raises:
        UserError: The request or the data set does not fit.
        SystemExit, KeyboardInterrupt: A signal; the present trial has saved a last checkpoint.
        TrainingError: No trial has finished.
    """
    from training.distributed.ray_session import ray_session

    wanted = TuneRequest.from_dict(request)
    wanted.axes()
    places = {"data_uri": data_uri, "storage_root_uri": storage_root_uri}
    key, uri, done_uri = tune_files({"request": request, **places, "pipeline_run_id": pipeline_run_id})
    tracked = open_tuning(key, uri, wanted, tracking_experiment, pipeline_run_id)
    storage.write_json(storage.join(uri, PLAN), Plan(request=wanted, tracking_url=tracked.url).to_dict())
    require_not_deleting(uri)
    num_cpus = max(available_cores(), Resources.from_dict(resources).num_workers + 1)
    with close_tuning(tracked, uri), contextlib.ExitStack() as stack:

        def train(experiment: Experiment, label: str, prune: Pruner | None) -> None:
            stack.enter_context(ray_session(ray_address, num_cpus=num_cpus))  # starts Ray for the first trial, and joins it for the others
            train_run(
                experiment.to_json(),
                **places,
                reference_uri=reference_uri,
                tracking_experiment=tracking_experiment,
                resources=resources,
                pipeline_run_id=pipeline_run_id,
                parent_run_id=tracked.run_id,
                ray_address=ray_address,
                trial=label,
                prune=prune,
            )

        deadline = time.monotonic() + 3600 * wanted.options.hours if wanted.options.hours else float("inf")
        for number in _pending(wanted.trials, read_records(uri)):
            records = {record.number: record for record in read_records(uri)}
            present = records.get(number)
            if present is not None and present.state != "failed":  # another process has run it meanwhile
                continue
            if time.monotonic() > deadline:
                done = sum(record.state != "failed" for record in records.values())
                say(f"the time is over: {done} of {wanted.trials} trials are done, and the same command goes on")
                break
            params = present.params if present else _suggest(wanted, list(records.values()), number)
            others = [record for record in records.values() if record.number != number]
            record = _run_trial(wanted, number, params, others, train, **places)
            write_record(uri, record)
            log_trials(tracked, [*others, record])
            make_report(uri)
        records = {record.number: record for record in read_records(uri)}
        if best_of(list(records.values())) is None:
            reasons = [record.reason for record in records.values() if record.reason]
            raise TrainingError(f"no trial has finished{f': {reasons[-1]}' if reasons else ''}")
    storage.write_json(done_uri, {"trials": wanted.trials})
    return uri


def label_of(number: int, params: Mapping[str, Value]) -> str:
    """Return the label of a trial, like "3: learning_rate=0.002 dropout=0.1"."""
    return f"{number}: {' '.join(f'{Axis(field=field).name}={value}' for field, value in params.items())}"


def _pending(num_trials: int, records: list[TuningTrial]) -> list[int]:
    """Return the trials to run: those without a record, then those that failed.

    One that was killed has no record. With the result of a failed one its suggestion would be another, and its training be lost.
    """
    states = {record.number: record.state for record in records}
    return sorted((number for number in range(num_trials) if states.get(number, "failed") == "failed"), key=lambda number: number in states)


def _suggest(request: TuneRequest, records: list[TuningTrial], number: int) -> dict[str, Value]:
    before = [record for record in records if record.number < number]
    return suggest(request.axes(), request.experiment(), before, number=number, seed=request.options.seed)


def _run_trial(
    request: TuneRequest,
    number: int,
    params: dict[str, Value],
    others: list[TuningTrial],
    train: Train,
    *,
    data_uri: str,
    storage_root_uri: str,
) -> TuningTrial:
    """Train a trial, or find it trained, and return its record.

    Raises:
        Exception: One that says nothing against the trial, such as an S3 that is away.
    """
    from evaluation.monitoring.checkpoint_scorer import comparable, read_history

    label, run_uri = label_of(number, params), ""
    best = best_of(others)
    say(f"trial {label} (of {request.trials}{f'; the best so far is {best.score:.4g}, trial {best.number}' if best else ''})")
    pruner = _pruner(request, others)
    try:
        experiment = request.trial(params)
        run_uri = identify(experiment, data_uri, storage_root_uri).uri
        if read_result(run_uri):
            say(f"run {run_uri.rpartition('/')[2]} is already trained")
        elif pruner is None or pruner(comparable(read_history(run_uri), experiment.evaluation)) is None:  # or an equal trial was pruned
            train(experiment, label, pruner)
    except (UserError, TrainingError) as error:
        say(f"trial {number} failed: {error}")
        return TuningTrial(number=number, params=params, state="failed", reason=in_one_line(error), run_uri=run_uri)
    history, result = comparable(read_history(run_uri), experiment.evaluation), read_result(run_uri)
    scores = smallest_scores(history)
    reason, rungs = pruner.judge(history) if pruner is not None else (None, {})
    score, step = min(((score, step) for step, score in scores if score is not None), default=(None, None))
    state: State
    if result and score is None:
        state, reason = "failed", "it has no finite score" if history else _NOT_SCORED
    else:
        state, reason = ("complete", "") if result else ("pruned", reason or "")
    say(f"trial {number}: {state}" + ("" if score is None else f", {score:.4g} at step {step:,}"))
    return TuningTrial(
        number=number,
        params=params,
        state=state,
        score=score,
        best_step=step,
        scores=scores,
        rungs=rungs,
        reason=reason or "",
        run_uri=run_uri,
    )


def _pruner(request: TuneRequest, others: list[TuningTrial]) -> Pruner | None:
    if not request.options.reduction:
        return None
    return Pruner(
        rungs=tuple(record.rungs for record in others if record.state != "failed"),
        min_steps=request.experiment().optim.checkpoint_interval,
        reduction=request.options.reduction,
    )
