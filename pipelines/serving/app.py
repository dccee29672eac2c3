"""The service's application: one model, one drawing at a time, a short queue.

A request says everything that its images depend on, so the same address gives the same PNG.
"""

import asyncio
import dataclasses
import math
import threading
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from torchvision.utils import make_grid

from evaluation.records import grids
from evaluation.sampling.generate import Labels, concatenated, generate, with_evaluations
from evaluation.sampling.trained_model import TrainedModel, checkpoint_digest
from training.config.errors import UserError
from training.config.experiment import MAX_SEED, SamplingConfig, SamplingMethod
from training.config.spacing import count_timesteps


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The limits of a request.

    Attributes:
        max_images: Images of a request.
        max_evaluations: Evaluations of the network for each image: one for each sampling step, with guidance two.
        max_queue: Requests that wait or are drawn; a further one is answered 503.
    """

    max_images: int = 16
    max_evaluations: int = 1000
    max_queue: int = 8


def make_app(model: TrainedModel, limits: Limits) -> FastAPI:
    """Return the application for a model; raise UserError if the model is an upsampler, which needs small images."""
    if model.low_res_size is not None:
        raise UserError(f"{model.description} is an upsampler and needs small images; `iddpm sample --low-res` draws from it")
    digest = checkpoint_digest(model.checkpoint_uri)
    default = model.experiment.evaluation.sampling
    app = FastAPI(title=model.experiment.name, docs_url=None, redoc_url=None)
    turn = threading.Lock()
    open_requests = 0

    @app.exception_handler(UserError)
    async def refuse(_: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=400)

    @app.get("/")
    async def addresses() -> dict[str, str]:
        return {"samples": "/samples.png?seed=0", "model": "/model", "health": "/health", "schema": "/openapi.json"}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "open_requests": open_requests, "max_queue": limits.max_queue}

    @app.get("/model")
    async def describe() -> dict[str, Any]:
        return {
            "name": model.experiment.name,
            "checkpoint_uri": model.checkpoint_uri,
            "weights": model.weights,
            "step": model.step,
            "sha256": digest,
            "num_classes": model.num_classes,
            "image_shape": list(model.image_shape),
            "sampling": dataclasses.asdict(default),
            "limits": dataclasses.asdict(limits),
        }

    class Drawing(BaseModel):
        model_config = ConfigDict(extra="forbid")  # a misspelt field would be another image than the one that was asked for
        seed: int = Field(0, ge=0, le=MAX_SEED)
        num_images: int = Field(1, ge=1, le=limits.max_images)
        label: int | None = Field(None, ge=0)
        evaluations: int | None = Field(None, ge=1, le=limits.max_evaluations)
        method: SamplingMethod = default.method

    @app.get("/samples.png")
    async def samples(drawing: Annotated[Drawing, Query()]) -> Response:
        nonlocal open_requests
        sampling = _sampling(model, default, drawing.evaluations, drawing.method, limits)
        labels: Labels = "balanced" if drawing.label is None else (drawing.label,)
        if open_requests >= limits.max_queue:
            return JSONResponse({"detail": f"{open_requests} requests are open; try again"}, status_code=503, headers={"Retry-After": "5"})

        def draw() -> bytes:
            with turn:  # two drawings at once would take as long, and twice the memory
                drawn = generate(model, num_images=drawing.num_images, seed=drawing.seed, sampling=sampling, labels=labels)
                images, _ = concatenated(drawn)
            sheet = make_grid(images, nrow=math.ceil(math.sqrt(drawing.num_images)), padding=0)
            return grids.to_png(sheet.permute(1, 2, 0).contiguous().numpy())

        open_requests += 1
        try:
            png = await asyncio.to_thread(draw)
        finally:
            open_requests -= 1
        return Response(png, media_type="image/png", headers={"Cache-Control": "no-store"})  # the next model has the same address

    return app


def _sampling(
    model: TrainedModel, default: SamplingConfig, evaluations: int | None, method: SamplingMethod, limits: Limits
) -> SamplingConfig:
    """Return the sampler of a request."""
    num_timesteps = model.experiment.diffusion.num_timesteps
    most = num_timesteps * default.evaluations_per_step
    if evaluations is not None and evaluations > most:
        raise UserError(f"evaluations: this model has {num_timesteps} timesteps and takes at most {most} evaluations, got {evaluations}")
    sampling = with_evaluations(default, evaluations).with_method(method)
    num_steps = count_timesteps(sampling.spacing, num_timesteps) * sampling.evaluations_per_step
    if num_steps > limits.max_evaluations:
        raise UserError(f"the experiment takes {num_steps} evaluations, and {limits.max_evaluations} are allowed; say evaluations=...")
    return sampling
