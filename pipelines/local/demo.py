"""The demo: the train pipeline on real handwritten digits, on this machine, and what came out of it in a few lines."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.console import format_duration

PRESET = "digits-hybrid-cosine"
NUM_WORKERS = 2


def run_demo(overrides: Sequence[str] = ()) -> None:
    """Runs the demo and prints its summary; run again, it finds what is done and says so.

    Args:
        overrides: Of the demo's experiment.

    Raises:
        UserError: An override is invalid.
        ServicesError: S3 or MLflow can't be started.
        PipelineError: A step failed, or Ctrl-C.
    """
    from pipelines.compile import load
    from pipelines.local.run import PipelineInterruptedError, run_pipeline
    from pipelines.services import services
    from training.config.presets import preset

    started = time.monotonic()
    preset(PRESET, overrides)
    print("starting S3 and MLflow on this machine ...", flush=True)
    were_running = services.status().running
    running = services.up()
    print(f"MLflow is {running.mlflow_url}; the state is in {running.home}", flush=True)
    arguments = {
        "experiment_preset": PRESET,
        "experiment_overrides": list(overrides),
        "train_resources": json.dumps({"num_workers": NUM_WORKERS}),
    }
    try:
        outputs = run_pipeline(load("train"), arguments, running, show=lambda line: print(line, flush=True))
    except PipelineInterruptedError:
        if not were_running:  # nothing that this command started stays
            services.down()
        raise
    os.environ.update(running.env)
    print(summary(outputs["Output"], running.home / "demo", seconds=time.monotonic() - started))


def summary(run_uri: str, directory: Path, *, seconds: float) -> str:
    """What came out of a run, for a person who sees it for the first time; its pictures and pages are put on disk.

    Args:
        run_uri: A finished train pipeline's run.
        directory: Where the sample grid and the report go.
        seconds: How long it took.
    """
    from evaluation.monitoring.checkpoint_scorer import read_history
    from training import storage
    from training.tracking.runs import attach

    trained = storage.read_json(storage.join(run_uri, "result.json"))
    result = storage.read_json(storage.join(run_uri, "evaluations", "final.json"))
    report_uri = storage.join(run_uri, "evaluations", "report.html")
    directory.mkdir(parents=True, exist_ok=True)
    grid_path = storage.download(result["grid_uri"], directory / "samples.png")
    report_path = storage.download(report_uri, directory / "report.html")
    likelihood = result["likelihood"]
    stop = f", stopped early of {result['experiment']['optim']['num_steps']:,}" if trained["stop_reason"] else ""
    rows = [
        ("trained", f"{trained['step']:,} steps{stop}"),
        ("distance", _progress(read_history(run_uri))),
        (
            "reported",
            f"{result['distance_name']} {_with_error(result['distance'], result['distance_standard_error'])}, step {result['step']:,}",
        ),
        (
            "bits/dim",
            f"{_with_error(likelihood['bits_per_dim'], likelihood['standard_error'])} on {likelihood['num_images']:,} test images",
        ),
        ("samples", _shown(grid_path)),
        ("report", f"{_shown(report_path)}  (also {report_uri})"),
        ("checkpoint", result["checkpoint_uri"]),
        ("MLflow", attach(trained["tracking_run_id"]).url),
    ]
    # Who came by `make demo` has not activated .venv.
    command = "iddpm" if shutil.which("iddpm") else _shown(Path(sys.executable).with_name("iddpm"))
    lines = [f"{name:>12}  {value}" for name, value in rows]
    return "\n".join(
        [
            "",
            f"Done in {format_duration(seconds)}.",
            *lines,
            "",
            "Try next:",
            f"  {command} sample {result['checkpoint_uri']} more.png --weights {result['weights']}",
            "      more samples of this model",
            f"  {command} demo --set diffusion.schedule=linear",
            "      the same with the linear schedule; MLflow compares the two",
            f"  {command} run ablation",
            "      lambda against the stop-gradient, the paper's table 1, on the digits",
            f"  {command} down",
            "      stop S3 and MLflow; their data stays",
        ]
    )


def _progress(history: Sequence[Any]) -> str:
    """The scores beside training: first and best, which are of one protocol and so comparable."""
    scored = [(min(value for value in score["scores"].values() if value is not None), int(score["step"])) for score in history]
    if not scored:
        return "no checkpoint was scored"
    first, best = scored[0], min(scored)
    change = f"{first[0]:.3g} at step {first[1]:,} -> {best[0]:.3g} at step {best[1]:,}"
    return f"{history[0]['distance_name']} {change} (few-step scores beside training)"


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.4g}" + (f" +- {error:.2g}" if error else "")


def _shown(path: Path) -> str:
    """A path as short as it can be said from here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
