"""up, down, status: S3 and MLflow on this machine."""

from __future__ import annotations

import json

import typer

from pipelines.cli.options import JSON
from training.config.errors import UserError


def connect() -> None:
    """Make this process a client of S3 and MLflow, see `pipelines.services.services`."""
    from pipelines.services import services

    services.connect()


def up() -> None:
    """Start S3 (SeaweedFS) and MLflow on this machine."""
    from pipelines.services import services

    running = services.up()
    print(f"MLflow  {running.mlflow_url}\nS3      {running.s3_endpoint} ({running.bucket_uri})\nfolder  {running.home}")


def down(force: bool = typer.Option(False, "--force", help="Stop them also while another command uses them, which then fails.")) -> None:
    """Stop S3 and MLflow on this machine. Their data stays."""
    from pipelines.services import home, services

    directory = home.default_home()
    if not force and directory.is_dir() and services.status(directory).running and home.has_other_users(directory):
        raise UserError("another command uses S3 and MLflow; wait for its end, or stop them all the same by `iddpm down --force`")
    stopped = services.down()
    print("stopped" if stopped else "nothing was running")


def status(as_json: bool = JSON) -> None:
    """Show the services of this machine: addresses, memory and disk. The exit status is 3 if one does not run."""
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
