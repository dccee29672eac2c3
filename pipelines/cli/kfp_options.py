"""What the commands share that speak with KFP: their options, the way to it, and how they print."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

import typer

from pipelines.client.connection import Connection

PANEL = "On a cluster"
PRESET = typer.Option("", help="The experiment; `iddpm presets` lists them.")
SET = typer.Option([], "--set", help="Override of the experiment, like optim.num_steps=500; repeat it.")
PARAM = typer.Option([], "--param", help="Parameter of the pipeline, like train_gpus=8; repeat it.")
EXPERIMENT = typer.Option("", help="KFP's experiment; empty takes iddpm, made where it is missing.")
CREATE_EXPERIMENT = typer.Option(False, "--create-experiment", help="Make the experiment where it is missing.")
CLUSTER_ZONE = typer.Option("UTC", help="Zone in which KFP reads cron; `iddpm doctor` shows it.")
JSON = typer.Option(False, "--json", help="As JSON.")
PIPELINE = typer.Argument(..., help="train, ablation or nightly-fid.")


def _way(default: Any, *names: str, help_text: str) -> Any:
    return typer.Option(default, *names, help=help_text, rich_help_panel="The way to KFP")


_CONNECTION: dict[str, tuple[type, Any]] = {
    "endpoint": (str, _way("", help_text="KFP's address, like https://kfp.example.com; empty reads KF_PIPELINES_ENDPOINT.")),
    "port_forward": (bool, _way(False, "--port-forward", help_text="Through kubectl port-forward, for the time of the command.")),
    "kfp_namespace": (str, _way("kubeflow", help_text="Where KFP is installed.")),
    "token_file": (str, _way("", help_text="File with a token for KFP; empty reads KFP_TOKEN, in a pod its own token.")),
    "ca_file": (str, _way("", help_text="Certificates to trust; empty reads SSL_CERT_FILE.")),
    "namespace": (str, _way("", help_text="Your namespace, where KFP serves several users.")),
}


def with_connection(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes a connection, as one that takes the options which say it."""

    @functools.wraps(command)
    def run(**words: Any) -> None:
        connection = Connection(**{name: words.pop(name) for name in _CONNECTION})
        command(connection, **words)

    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind)
        for name, (kind, option) in _CONNECTION.items()
    ]
    signature = inspect.Signature([*own, *shared])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in signature.parameters.values()}
    return run


def out(line: str) -> None:
    """Prints what was asked for."""
    print(line, flush=True)


def err(line: str) -> None:
    """Prints what stands beside it."""
    print(line, file=sys.stderr, flush=True)


def warn(line: str) -> None:
    """Prints what is not as it should be, but does not keep the command from working."""
    err(f"warning: {line}")


def table(rows: list[tuple[str | None, ...]]) -> None:
    """Prints rows, their columns in line."""
    widths = [max(len(word or "") for word in column) for column in zip(*rows, strict=True)]
    for row in rows:
        out("  ".join((word or "").ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())


def moment(text: str, zone: str = "UTC") -> str:
    """A time in ISO's form, to the minute; "-" for none."""
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M} {zone}" if text else "-"


def uploaded(is_new: bool) -> str:
    """What became of a pipeline's version."""
    return "(uploaded)" if is_new else "(there already)"
