"""The names that a notebook needs, in one place:

    from pipelines.notebook import connect, generate, join_batches, resolve_model
    connect()
    model = resolve_model("s3://iddpm/runs/KEY").spec().load("cuda")
    images, labels = join_batches(generate(model, num_images=16, seed=0, sampling=model.experiment.evaluation.sampling))
    images.shape  # uint8 NCHW

This module only re-exports; each name's documentation is where it is defined. Nothing in the project imports it.
"""

from evaluation.distances.reference_statistics import compute_reference
from evaluation.evaluate.options import EvaluationOptions
from evaluation.evaluate.run import evaluate
from evaluation.features.extractors import load_extractor
from evaluation.records.grids import sample_grid, to_png
from evaluation.sampling.generate import concatenated as join_batches
from evaluation.sampling.generate import generate
from evaluation.sampling.trained_model import ModelSpec, TrainedModel, ensemble, load_model
from evaluation.selection.resolve import resolve_model
from evaluation.studies.compare import compare
from evaluation.studies.comparison_page import as_study as comparison_study
from pipelines.services.services import connect
from training.checkpoints.checkpoint import save as save_checkpoint
from training.config.experiment import Experiment, Resources, SamplingConfig
from training.config.files import read_experiment_file, resolve_experiment
from training.config.presets import names as preset_names
from training.config.presets import preset
from training.data.format.manifest import read_manifest
from training.data.loading.loader import Loader
from training.data.splits import prepare_splits
from training.loop.interfaces import Hooks
from training.loop.trainer import Trainer
from training.tracking.metrics_file import read_metric

__all__ = [
    "EvaluationOptions",
    "Experiment",
    "Hooks",
    "Loader",
    "ModelSpec",
    "Resources",
    "SamplingConfig",
    "TrainedModel",
    "Trainer",
    "compare",
    "comparison_study",
    "compute_reference",
    "connect",
    "ensemble",
    "evaluate",
    "generate",
    "join_batches",
    "load_extractor",
    "load_model",
    "prepare_splits",
    "preset",
    "preset_names",
    "read_experiment_file",
    "read_manifest",
    "read_metric",
    "resolve_experiment",
    "resolve_model",
    "sample_grid",
    "save_checkpoint",
    "to_png",
]
