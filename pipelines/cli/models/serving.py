"""serve: images of a model over HTTP."""

from __future__ import annotations

import socket

import typer

from pipelines.cli.models.scoring import DEVICE, WEIGHTS
from pipelines.cli.options import MODEL, err
from pipelines.cli.services import connect
from training.config.errors import UserError


def serve(
    model: str = MODEL,
    host: str = typer.Option(
        "127.0.0.1", help="Address to listen at. The service has no password: put a proxy before it if others use it."
    ),
    port: int = typer.Option(8000, min=0, max=65535, help="Port to listen at; 0 takes a free one."),
    max_images: int = typer.Option(16, min=1, help="Largest number of images of a request."),
    max_evaluations: int = typer.Option(1000, min=1, help="Largest number of network evaluations for each image."),
    max_queue: int = typer.Option(8, min=1, help="Requests that wait or are drawn; further ones are answered 503."),
    weights: str = WEIGHTS,
    device: str = DEVICE,
) -> None:
    """Serve a model's images over HTTP: /samples.png?seed=0&label=3&num_images=4&evaluations=25, /model and /health."""
    connect()
    import uvicorn

    from evaluation.records.devices import choose_device
    from evaluation.selection.resolve import resolve_model
    from pipelines.serving.app import Limits, make_app

    try:  # before a model is loaded for nothing
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]  # Python adds the address to the system's words
        raise UserError(f"{host}:{port}: {reason}; give another --port (0 takes any that is free), or another --host") from None
    loaded = resolve_model(model).spec(weights or None).load(choose_device(device))
    app = make_app(loaded, Limits(max_images=max_images, max_evaluations=max_evaluations, max_queue=max_queue))
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    err(f"{loaded.description} on {loaded.device} at {address}; Ctrl-C stops it")
    uvicorn.Server(uvicorn.Config(app, log_level="info")).run(sockets=[listener])
