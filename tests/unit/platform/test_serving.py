"""`iddpm serve` as a client meets it: real requests to a real server."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import requests
import torch
from PIL import Image

from evaluation.sampling.generate import concatenated, generate
from evaluation.sampling.trained_model import load_model
from pipelines.cli.models.scoring import sampling_of
from pipelines.cli.models.serving import serve
from pipelines.serving.app import Limits, _sampling
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import SamplingConfig, SamplingMethod
from training.config.presets import preset
from training.models.unet import make_model

EXPERIMENT = preset("digits-tiny-hybrid-cosine", ("model.model_channels=32", "model.class_conditional=true", "optim.ema_decays=0.99"))


@pytest.fixture(scope="module")
def model_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    state = make_model(EXPERIMENT).state_dict()
    state["out.2.weight"].normal_(std=0.1)
    files = {checkpoint.EXPERIMENT: EXPERIMENT.to_json().encode(), "ema_0.99.pt": state}
    return checkpoint.save(str(tmp_path_factory.mktemp("run")), 10, files)


@pytest.fixture(scope="module")
def address(model_uri: str) -> Iterator[str]:
    """The address of a server with small limits."""
    command = [str(Path(sys.executable).with_name("iddpm")), "serve", model_uri, "--port", "0", "--device", "cpu"]
    server = subprocess.Popen(
        [*command, "--max-images", "4", "--max-evaluations", "200", "--max-queue", "2"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
    )
    assert server.stderr is not None
    found = next((match for line in server.stderr if (match := re.search(r"http://127\.0\.0\.1:\d+", line))), None)
    assert found, "the server ended before it listened"
    threading.Thread(target=server.stderr.read, daemon=True).start()
    yield found[0]
    server.send_signal(signal.SIGINT)
    server.wait(300)  # it first answers what it draws, which a busy machine does slowly


def _pixels(answer: requests.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "image/png"
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"))


def test_a_port_that_is_taken_is_named_with_the_remedy_before_a_model_is_loaded(address: str) -> None:
    port = int(address.rpartition(":")[2])
    with pytest.raises(UserError, match=f"127.0.0.1:{port}: Address already in use; give another --port"):
        serve("no-such-model", "127.0.0.1", port, 4, 200, 2, "", "cpu")


def test_a_host_that_is_none_is_named_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r"nowhere\.invalid:8000: (Name|Temporary).*; give another --port .* or another --host"):
        serve("no-such-model", "nowhere.invalid", 8000, 4, 200, 2, "", "cpu")


@pytest.mark.parametrize(
    "settings",
    [
        ("variance=optimal",),
        ("method=ddim", "eta=0.5", "variance=analytic"),
        ("method=dpm_solver_pp", "eta=0.5", "order=3"),
        ("method=unipc", "order=3", "unipc_variant=B1"),
    ],
)
def test_another_method_than_the_models_takes_nothing_that_belongs_to_the_models_own(tmp_path: Path, settings: tuple[str, ...]) -> None:
    experiment = EXPERIMENT.override([f"evaluation.sampling.{setting}" for setting in ("spacing=5", "dynamic_threshold=0.9", *settings)])
    files = {checkpoint.EXPERIMENT: experiment.to_json().encode(), "ema_0.99.pt": make_model(experiment).state_dict()}
    uri, own = checkpoint.save(str(tmp_path), 10, files), experiment.evaluation.sampling
    for method in get_args(SamplingMethod):
        expected = own if method == own.method else SamplingConfig(method=method, spacing="5", dynamic_threshold=0.9)
        assert _sampling(load_model(uri), own, None, method, Limits()) == expected
        assert sampling_of(uri, "", method) == expected, "the commands too"
    assert sampling_of(uri, "", "deis", ["order=1"]).order == 1
    with pytest.raises(UserError, match=r"^evaluation\.sampling\.method: .*'deis', got 'euler'"):
        sampling_of(uri, "", "euler")


@pytest.mark.parametrize("method", get_args(SamplingMethod))
def test_another_method_alone_keeps_the_experiments_timesteps_here_and_in_the_commands(model_uri: str, method: SamplingMethod) -> None:
    own = EXPERIMENT.evaluation.sampling
    served = _sampling(load_model(model_uri), own, None, method, Limits())
    assert served == sampling_of(model_uri, "", method)
    assert served.spacing == own.spacing


@pytest.mark.parametrize(("guidance_scale", "most"), [(1.0, 400), (2.0, 800)])
def test_more_evaluations_than_the_model_has_timesteps_are_refused_in_the_words_of_the_request(
    model_uri: str, guidance_scale: float, most: int
) -> None:
    model, own = load_model(model_uri), SamplingConfig(guidance_scale=guidance_scale)
    assert _sampling(model, own, most, own.method, Limits()).spacing == "400"
    with pytest.raises(
        UserError, match=f"^evaluations: this model has 400 timesteps and takes at most {most} evaluations, got {most + 1}$"
    ):
        _sampling(model, own, most + 1, own.method, Limits())


def test_a_request_gives_the_images_that_python_draws(address: str, model_uri: str) -> None:
    answer = requests.get(f"{address}/samples.png", {"seed": 7, "label": 3, "num_images": 4, "evaluations": 5}, timeout=60)
    sampling = EXPERIMENT.override(["evaluation.sampling.spacing=5"]).evaluation.sampling
    images, labels = concatenated(generate(load_model(model_uri), num_images=4, seed=7, sampling=sampling, labels=(3,)))
    assert labels is not None
    assert set(labels.tolist()) == {3}
    size = EXPERIMENT.data.image_size
    tiles = _pixels(answer).reshape(2, size, 2, size, 3).swapaxes(1, 2).reshape(4, size, size, 3)
    assert np.array_equal(tiles[..., 0], images[:, 0].numpy())
    # A browser would show these images for another model that is served at this address next.
    assert (answer.headers["Cache-Control"], "ETag" in answer.headers) == ("no-store", False)


def test_the_model_is_described(address: str, model_uri: str) -> None:
    found = requests.get(f"{address}/model", timeout=60).json()
    assert (found["checkpoint_uri"], found["weights"], found["num_classes"]) == (model_uri, "ema_0.99", 10)
    assert requests.get(f"{address}/health", timeout=60).json()["status"] == "ok"
    listed = requests.get(address, timeout=60).json()
    assert {requests.get(f"{address}{path}", timeout=60).status_code for path in listed.values()} == {200}
    (parameters,) = (
        each["get"]["parameters"]
        for path, each in requests.get(f"{address}/openapi.json", timeout=60).json()["paths"].items()
        if "png" in path
    )
    assert {each["name"] for each in parameters} == {"seed", "num_images", "label", "evaluations", "method"}


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ({"num_images": 5}, 422, "less than or equal to 4"),
        ({"evaluations": 201}, 422, "less than or equal to 200"),
        ({"label": 10, "evaluations": 2}, 400, "not all in 0..9"),
        ({"method": "euler"}, 422, "ancestral"),
        ({"seed": "x"}, 422, "integer"),
        ({"seed": -1}, 422, "greater than or equal to 0"),
        ({"seed": 2**32}, 422, "less than or equal to 4294967295"),  # `iddpm sample` could not draw the same images
        ({"num_image": 2}, 422, "num_image"),
    ],
)
def test_a_request_that_asks_too_much_is_refused_with_a_reason(address: str, query: dict[str, object], status: int, words: str) -> None:
    answer = requests.get(f"{address}/samples.png", query, timeout=60)
    assert answer.status_code == status
    assert words in answer.text


def test_more_requests_than_the_queue_holds_are_answered_at_once_and_the_service_goes_on(address: str) -> None:
    def ask(seed: int) -> int:
        return requests.get(f"{address}/samples.png", {"seed": seed, "num_images": 4, "evaluations": 100}, timeout=120).status_code

    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(ask, range(8)))
    assert set(codes) == {200, 503}
    assert _pixels(requests.get(f"{address}/samples.png", {"evaluations": 2}, timeout=60)).shape[0] == EXPERIMENT.data.image_size
