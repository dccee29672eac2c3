"""The nightly check on a real model: it has to be found when it is 2 standard deviations worse, and left alone while it is healthy.

    python tests/benchmarks/bench_regression.py RUN DATA --folder FOLDER [--services HOME]

RUN is the directory of a trained run, DATA that of its data set. A copy of its chosen weights is scored night by night: a baseline, then
more healthy nights. Then noise is added to its weights, so much that its distance rises by 2 standard deviations of a night. From the same
healthy history it is scored until it is found, several times. The standard deviation is that of 100 further draws, which are in no
history: that of 30 nights alone has an error of 13%.

Without `--services` a night is the steps of the nightly pipeline in this process, without MLflow. With it a night is a run of the whole
pipeline by `kfp.local`, with the S3 and the MLflow of that directory, as `iddpm run nightly-fid` does it: about half a minute more.

The difference of two nights is measured on new noise and on common noise: the spread of "worse less healthy" over pairs of nights. The run
and the page of each night stay in FOLDER, and the same command goes on where it was stopped. It prints the measures; the exit status is
the number of goals that are missed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import statistics
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perturbed import noisy

from components.steps.nightly import RegressionError, compare_with_history, score_model
from evaluation.evaluate.options import EvaluationOptions
from evaluation.evaluate.run import evaluate
from evaluation.monitoring.nightly import HISTORY, History, judge, read_history, write_history
from evaluation.records.run_directory import RESULT, run_uri_of
from evaluation.sampling.trained_model import ModelSpec
from evaluation.selection.resolve import resolve_model
from pipelines.compile import load
from pipelines.local.run import PipelineError, run_pipeline
from pipelines.services import services as local_services
from pipelines.services.services import Services
from training import storage
from training.checkpoints import checkpoint
from training.config.experiment import SamplingConfig
from training.config.validation import adapter
from training.tracking.runs import open_run

WORSE_BY = 2.0
"""Standard deviations of a night by which the model becomes worse."""
MEDIAN_GOAL = 7
"""Nights within which half of the sequences have to be found."""
_FIRST_SIZE, _NUM_TRIES = 0.13, 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class NightlyModel:
    """A copy of a model, in a run of its own, which the nightly steps score.

    Attributes:
        folder: Where the measures and the pages are kept.
        root: Where the run and the reference statistics are.
        data_uri: The data set.
        source: The model that is copied.
        num_samples, sampling: How a night is drawn.
        baseline_nights: See `evaluation.monitoring.detector.Rule`.
    """

    folder: Path
    root: str
    data_uri: str
    source: ModelSpec
    num_samples: int
    sampling: SamplingConfig
    baseline_nights: int

    @property
    def run_uri(self) -> str:
        """The run's directory."""
        return storage.join(self.root, "run")

    @property
    def copy(self) -> ModelSpec:
        """The copy."""
        step = checkpoint.step_of(self.source.checkpoint_uri)
        return ModelSpec(checkpoint_uri=checkpoint.checkpoint_uri(self.run_uri, step), weights=self.source.weights)

    def write(self, size: float) -> None:
        """Write the model's weights with noise of `size` standard deviations of each tensor."""
        experiment = checkpoint.load_experiment(self.source.checkpoint_uri)
        evaluation = dataclasses.replace(experiment.evaluation, num_samples=self.num_samples, sampling=self.sampling, metrics=())
        state = noisy(checkpoint.load(self.source.checkpoint_uri, f"{self.source.weights}.pt"), size, seed=1)
        files = {
            "experiment.json": dataclasses.replace(experiment, evaluation=evaluation).to_dict(),
            f"{self.source.weights}.pt": state,
        }
        checkpoint.save(self.run_uri, checkpoint.step_of(self.source.checkpoint_uri), files)

    def healthy(self, names: list[str]) -> History:
        """Score the healthy model in nights of these names, and return their history."""

        def score() -> dict[str, Any]:
            self.write(0.0)
            history = self.history()
            write_history(self.run_uri, history)  # a run without one asks MLflow, which may have that of an earlier version
            for name in names[len(history.nights) :]:
                self.night(name)
            plain: dict[str, Any] = storage.read_json(storage.join(self.run_uri, HISTORY))
            return plain

        found: History = adapter(History).validate_json(json.dumps(self.kept("healthy", score)))
        return found

    def kept(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return a result of an earlier start; compute and keep it if there is none."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            path.write_text(json.dumps(compute()))
        return json.loads(path.read_text())

    def night(self, name: str) -> int:
        """Score and judge a night as the pipeline does; return +1 for worse, -1 for better, 0 for healthy."""
        page = str(self.folder / "pages" / f"{name}.html")
        checkpoint_uri, weights = self.copy.checkpoint_uri, self.copy.weights or ""
        scored = score_model(checkpoint_uri, weights, self.data_uri, self.baseline_nights, 0.0, self.root, f"nightly-{name}", {})
        with contextlib.suppress(RegressionError):
            compare_with_history(scored, "no-run", self.baseline_nights, 0.0, self.root, page)
        return judge(self.history()).direction

    def again(self, night_id: str) -> float:
        """Return the distance on the noise of a night, or of any other name, without adding it to the history."""
        (reference,) = (uri for uri in storage.list_uris(storage.join(self.root, "references")) if uri.endswith(".npz"))
        options = EvaluationOptions(purpose=night_id, result_name="again", likelihood=False)
        return evaluate(self.copy, self.data_uri, reference, options=options).distance

    def history(self) -> History:
        """Return the nights so far."""
        return read_history(self.run_uri) or History()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineModel(NightlyModel):
    """The same, scored by the whole pipeline on this machine.

    Attributes:
        services: The S3 and the MLflow that the pipeline uses.
    """

    services: Services

    def write(self, size: float) -> None:
        """Write the weights as above, and on the first time an MLflow run and what makes the copy a finished run."""
        super().write(size)
        result_uri = storage.join(self.run_uri, RESULT)
        if not storage.exists(result_uri):
            experiment = {"run_key": f"regression-{uuid.uuid4().hex[:10]}", "experiment_name": "regression", "run_name": "regression"}
            run = open_run(**experiment, tags={}, params={})
            run.finish("FINISHED")
            found = storage.read_json(storage.join(run_uri_of(self.source.checkpoint_uri), RESULT))
            storage.write_json(result_uri, {**found, "run_uri": self.run_uri, "tracking_run_id": run.run_id})

    def night(self, name: str) -> int:
        """Run the pipeline once; the run's id seeds its samples, and `name` is only shown."""
        before = len(self.history().nights)
        arguments = {"model": self.copy.checkpoint_uri, "baseline_nights": self.baseline_nights, "storage_root_uri": self.root}
        try:
            run_pipeline(load("nightly-fid"), arguments, self.services, show=lambda line: None)
        except PipelineError as error:
            if "has regressed" not in str(error):
                raise
        assert len(self.history().nights) == before + 1, name
        return judge(self.history()).direction


def measure(model: NightlyModel, *, num_healthy: int, num_draws: int, num_sequences: int, max_nights: int) -> dict[str, Any]:
    """Score all nights that are not scored yet, and return the measures by name.

    Args:
        model: The model.
        num_healthy: Healthy nights after the baseline.
        num_draws: Further draws of the healthy model, for the standard deviation of a night.
        num_sequences: How often the worse model is scored until it is found.
        max_nights: Nights after which a sequence gives up.
    """
    names = [f"healthy-{number:02d}" for number in range(model.baseline_nights + num_healthy)]
    healthy = model.healthy(names)
    scores = [night.distance or math.nan for night in healthy.nights]

    def draws() -> list[float]:
        model.write(0.0)
        return [model.again(f"draw-{number}") for number in range(num_draws)]

    deviation = statistics.stdev(model.kept("draws", draws))

    def shifts() -> list[float]:
        return [model.again(night.id) - score for night, score in zip(healthy.nights[: model.baseline_nights], scores, strict=False)]

    size = model.kept("size", lambda: _find_size(model, lambda: statistics.fmean(shifts()), WORSE_BY * deviation))
    model.write(size)
    differences = model.kept("differences", shifts)

    def nights_until_found(sequence: int) -> float:
        write_history(model.run_uri, healthy)
        nights = (night for night in range(1, max_nights + 1) if model.night(f"worse-{sequence}-{night}") > 0)
        return next(nights, math.inf)

    found = [model.kept(f"sequence-{number}", functools.partial(nights_until_found, number)) for number in range(1, num_sequences + 1)]
    new_noise, common_noise = 2 * deviation**2, statistics.variance(differences)
    return {
        "healthy nights": len(names),
        "of them the baseline": model.baseline_nights,
        "alarms of the healthy model": sum(judge(healthy.until(night.id)).direction != 0 for night in healthy.nights),
        "mean distance": statistics.fmean(scores),
        "standard deviation of a night, by further draws": deviation,
        "standard deviation of the healthy nights": statistics.stdev(scores),
        "noise on the weights, in their standard deviations": size,
        "worse by, in standard deviations of a night": statistics.fmean(differences) / deviation,
        "nights until it is found": found,
        "median": statistics.median(found),
        "standard deviation of a difference on new noise": math.sqrt(new_noise),
        "standard deviation of a difference on common noise": math.sqrt(common_noise),
        "variance on new noise over that on common noise": new_noise / common_noise,
    }


def _find_size(model: NightlyModel, shift: Callable[[], float], target: float) -> float:
    """Return the noise on the weights that makes the model worse by `target`: a distance grows as the square of a small change."""
    size = _FIRST_SIZE
    for _ in range(_NUM_TRIES):
        model.write(size)
        size *= math.sqrt(target / max(shift(), target / 9))
    return size


def main() -> int:
    """Measure, print, and return the number of goals that are missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="directory of a trained run")
    parser.add_argument("data", help="directory of its data set")
    parser.add_argument("--folder", type=Path, required=True, help="where the run and the pages are kept")
    parser.add_argument("--num-samples", type=int, default=100)
    parser.add_argument("--steps", default="10")
    parser.add_argument("--method", default="dpm_solver_pp")
    parser.add_argument("--baseline-nights", type=int, default=20)
    parser.add_argument("--healthy", type=int, default=10, help="healthy nights after the baseline")
    parser.add_argument("--draws", type=int, default=100, help="further draws, for the standard deviation of a night")
    parser.add_argument("--sequences", type=int, default=10)
    parser.add_argument("--max-nights", type=int, default=12)
    parser.add_argument("--services", type=Path, metavar="HOME", help="run the pipeline, with the services of this directory")
    given = parser.parse_args()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ.pop("IDDPM_WEBHOOK_URL", None)
    given.folder.mkdir(parents=True, exist_ok=True)
    services = local_services.up(given.services) if given.services else None
    if services:
        os.environ.update(services.env)
    found = resolve_model(given.run)
    settings: dict[str, Any] = {
        "folder": given.folder,
        "root": storage.join(services.bucket_uri, given.folder.resolve().name) if services else str(given.folder),
        "data_uri": given.data,
        "source": found.spec(found.weights or checkpoint.weights_names(found.checkpoint_uri)[0]),
        "num_samples": given.num_samples,
        "sampling": SamplingConfig(method=given.method, spacing=given.steps),
        "baseline_nights": given.baseline_nights,
    }
    model = PipelineModel(**settings, services=services) if services else NightlyModel(**settings)
    with contextlib.redirect_stdout(io.StringIO()):
        measured = measure(
            model, num_healthy=given.healthy, num_draws=given.draws, num_sequences=given.sequences, max_nights=given.max_nights
        )
    for name, value in measured.items():
        print(f"{name:<52} {value}")
    print(json.dumps(measured))
    return int(measured["median"] > MEDIAN_GOAL) + int(measured["alarms of the healthy model"] > 0)


if __name__ == "__main__":
    sys.exit(main())
