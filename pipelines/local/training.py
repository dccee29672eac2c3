"""Run the train pipeline on this machine, and summarise the finished run for a person."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.console import format_duration


def train_here(arguments: Mapping[str, Any], *, name: str = "", next_steps: Sequence[tuple[str, str]] = ()) -> None:
    """Run the train pipeline with this machine's services, and print a summary. A finished run is found and not repeated.

    Args:
        arguments: Parameters of the pipeline, as `pipelines.client.arguments` returns them.
        name: Directory, in that of the services, for the sample grid and the report; empty takes `trainings` and the run's key.
        next_steps: Arguments of further commands to suggest, and what each does.

    Raises:
        UserError: They have an image, or GPUs that this machine does not have.
        ServicesError: S3 or MLflow cannot be started.
        PipelineError: A step failed, or Ctrl-C.
    """
    from pipelines.client.arguments import require_possible_here
    from pipelines.compile import load
    from pipelines.local.run import PipelineInterruptedError, run_pipeline
    from pipelines.services import services
    from pipelines.services.home import has_other_users

    require_possible_here(arguments)
    started = time.monotonic()
    print("starting S3 and MLflow on this machine ...", flush=True)
    were_running = services.status().running
    running = services.up()
    print(f"MLflow is {running.mlflow_url}; the state is in {running.home}", flush=True)
    try:
        outputs = run_pipeline(load("train"), arguments, running, show=lambda line: print(line, flush=True))
    except PipelineInterruptedError:
        if not were_running:  # an interrupted command stops what it started, unless others use it by now
            if has_other_users(running.home):
                print("S3 and MLflow go on, as another command uses them; `iddpm down` stops them", flush=True)
            else:
                services.down()
        raise
    os.environ.update(running.env)
    took = format_duration(time.monotonic() - started)
    run_uri: str = outputs["Output"]
    folder = running.home / (name or f"trainings/{run_uri.rpartition('/')[2]}")
    print(f"\nDone in {took}.\n{summarize(run_uri, folder, next_steps=next_steps)}")


def summarize(run_uri: str, directory: Path, *, next_steps: Sequence[tuple[str, str]] = ()) -> str:
    """Return a summary of a finished run for a first-time reader.

    Args:
        directory: Local directory that the sample grid and the report are copied to.
        next_steps: As for `train_here`.
    """
    from evaluation.monitoring.checkpoint_scorer import read_comparable
    from evaluation.records.numbers import plain_estimate
    from training import storage
    from training.config.experiment import Experiment
    from training.tracking.runs import attach

    trained = storage.read_json(storage.join(run_uri, "result.json"))
    result = storage.read_json(storage.join(run_uri, "evaluations", "final.json"))
    report_uri = storage.join(run_uri, "evaluations", "report.html")
    directory.mkdir(parents=True, exist_ok=True)
    grid_path = storage.download(result["grid_uri"], directory / "samples.png")
    report_path = storage.download(report_uri, directory / "report.html")
    likelihood = result["likelihood"]
    split = result["experiment"]["evaluation"]["likelihood_split"]
    stop = f" of {result['experiment']['optim']['num_steps']:,} steps (stopped early)" if trained["stop_reason"] else " steps"
    distance = plain_estimate(result["distance"], result["distance_standard_error"])
    bits_per_dim = plain_estimate(likelihood["bits_per_dim"], likelihood["standard_error"])
    rows = [
        ("trained", f"{trained['step']:,}{stop}"),
        ("distance", _progress(read_comparable(run_uri, Experiment.from_dict(result["experiment"]).evaluation))),
        ("reported", f"{result['distance_name']} {distance}, step {result['step']:,}"),
        ("bits/dim", f"{bits_per_dim} on {likelihood['num_images']:,} {split} images"),
        ("samples", shorten_path(grid_path)),
        ("report", f"{shorten_path(report_path)}  (also {report_uri})"),
        ("checkpoint", result["checkpoint_uri"]),
        ("MLflow", attach(trained["tracking_run_id"]).url),
    ]
    # After `make demo`, .venv is not activated.
    command = "iddpm" if shutil.which("iddpm") else shorten_path(Path(sys.executable).with_name("iddpm"))
    sample = (f"sample {result['checkpoint_uri']} more.png --weights {result['weights']}", "more samples of this model")
    stop_services = ("down", "stop S3 and MLflow; their data stays")
    suggestions = [line for step, text in (sample, *next_steps, stop_services) for line in (f"  {command} {step}", f"      {text}")]
    return "\n".join([*(f"{name:>12}  {value}" for name, value in rows), "", "Try next:", *suggestions])


def shorten_path(path: Path) -> str:
    """Return a path relative to the working directory if it is below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _progress(history: Sequence[Mapping[str, Any]]) -> str:
    """Return the first and the best of a training's scores by one protocol."""
    from evaluation.records.stored import finite_scores

    scored = [(min(finite.values()), int(score["step"])) for score in history if (finite := finite_scores(score))]
    if not scored:
        return "no checkpoint has a finite score"
    first, best = scored[0], min(scored)
    change = f"{first[0]:.3g} at step {first[1]:,} -> {best[0]:.3g} at step {best[1]:,}"
    return f"{history[0]['distance_name']} {change} (few-step scores during training)"
