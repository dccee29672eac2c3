"""A registered model as MLflow's `python_function`: images from seeds. MLflow imports this module; it is not needed here.

The registered directory contains the checkpoint's address and the name of its weights, not the weights: loading reads them from S3.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.records.devices import choose_device
from evaluation.sampling.generate import Labels, concatenated, generate, with_evaluations
from evaluation.sampling.trained_model import ModelSpec, TrainedModel
from training.config.errors import UserError
from training.config.experiment import require_seed


class Sampler:
    """Draws images from a trained model by its experiment's sampler."""

    def __init__(self, model: TrainedModel) -> None:
        if model.low_res_size is not None:
            raise UserError(f"{model.description} is an upsampler and needs small images; `iddpm sample --low-res` draws from it")
        self._model = model

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> npt.NDArray[np.uint8]:
        """Draw images, the same as `iddpm sample` with the same seed.

        Args:
            model_input: A DataFrame with a row for each seed. Columns: `seed`; and optional `num_images` (1), `label` (0 to
                num_classes - 1; without it the classes take turns) and `evaluations` (of the network for each image; without it the
                experiment's).
            params: Unused; MLflow passes it.

        Returns:
            The images of all rows in their order, uint8 [images, height, width, channels].

        Raises:
            UserError: A value does not suit the model.
        """
        if not len(model_input):
            raise UserError("the table has no row; give one for each seed")
        images = []
        for row in model_input.astype(object).where(model_input.notna(), None).to_dict("records"):
            given = {name: _whole(name, value) for name, value in row.items() if value is not None}
            if "seed" not in given or not set(given) <= {"seed", "num_images", "label", "evaluations"}:
                raise UserError(f"a row has seed, and may have num_images, label and evaluations; got {', '.join(given) or 'nothing'}")
            require_seed(given["seed"])
            for name in ("num_images", "evaluations"):
                if given.get(name, 1) < 1:
                    raise UserError(f"{name} must be at least 1, got {given[name]}")
            sampling = with_evaluations(self._model.experiment.evaluation.sampling, given.get("evaluations"))
            labels: Labels = (given["label"],) if "label" in given else "balanced"
            drawn, _ = concatenated(
                generate(self._model, num_images=given.get("num_images", 1), seed=given["seed"], sampling=sampling, labels=labels)
            )
            images.append(drawn.permute(0, 2, 3, 1).numpy())
        return np.concatenate(images)


def _whole(name: str, value: Any) -> int:
    try:
        number = int(value)
        if isinstance(value, str) or number == value:
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise UserError(f"{name} must be a whole number, got {value!r}")


def _load_pyfunc(path: str) -> Sampler:
    """Load the model that a registered version names; MLflow calls it with the file that `training.tracking.registry` wrote."""
    spec = json.loads(Path(path).read_text(encoding="utf-8"))
    return Sampler(ModelSpec(checkpoint_uri=spec["checkpoint_uri"], weights=spec["weights"]).load(choose_device("auto")))
