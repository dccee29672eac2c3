"""up, down, status: S3 and MLflow on this machine."""

from __future__ import annotations

import json
import os

import typer


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(rich_help_panel="Services on this machine")(up)
    app.command(rich_help_panel="Services on this machine")(down)
    app.command(rich_help_panel="Services on this machine")(status)


def connect() -> None:
    """Makes this process a client of S3 and MLflow: those that the environment names, else the local ones if they run."""
    from pipelines.services import services

    if "AWS_ENDPOINT_URL" in os.environ or "MLFLOW_TRACKING_URI" in os.environ:
        return
    try:
        os.environ.update(services.current().env)
    except services.ServicesError:
        return  # a path on disk needs none; an s3:// address will say what is missing


def up() -> None:
    """Start S3 (SeaweedFS) and MLflow on loopback; harmless if they run."""
    from pipelines.services import services

    running = services.up()
    print(f"MLflow  {running.mlflow_url}\nS3      {running.s3_endpoint} ({running.bucket_uri})\nfolder  {running.home}")


def down() -> None:
    """Stop them; their data stays."""
    from pipelines.services import services

    stopped = services.down()
    print("stopped" if stopped else "nothing was running")


def status(as_json: bool = typer.Option(False, "--json", help="As JSON.")) -> None:
    """What runs, where, and how much it takes. Exit status 3 if something does not run."""
    from pipelines.services import services
    from training.console import format_bytes

    found = services.status()
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        for service in found.services:
            state = f"running  {service.url}  process {service.pid}  {format_bytes(service.memory_bytes)}" if service.running else "stopped"
            print(f"{service.name:<10} {state}")
        print(f"{'folder':<10} {found.home}  {format_bytes(found.data_bytes)}, {format_bytes(found.free_bytes)} free")
    if not found.running:
        raise typer.Exit(3)
