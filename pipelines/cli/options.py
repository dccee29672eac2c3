"""Options and output that several groups of commands share."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import typer
from rich.cells import cell_len

from pipelines.client.connection import Connection

PRESET = typer.Option("", help="Preset of the experiment; `iddpm presets` lists them.")
SET = typer.Option(
    [], "--set", help="Override of the experiment, like optim.num_steps=500; `iddpm show PRESET` prints every field. May be repeated."
)
PARAM = typer.Option(
    [], "--param", help="Parameter of the pipeline, as NAME=VALUE; what `iddpm compile` writes describes each. May be repeated."
)
RESOURCES = typer.Option(
    [],
    "--resources",
    help="Resources of a stage (data, train or evaluate): a profile, like train=2xcpu, or a field, like train.num_workers=4; "
    "k8s/README.md lists both. May be repeated.",
)
IMAGES = typer.Option("", help="Directory, zip or tar of the images; empty takes the data set's own source.")
DATA_OPTIONS = typer.Option(
    "",
    help='Preparation of the images, as JSON, like \'{"background": "black", "num_test": 378}\': the fields of the parameter data_options.',
)
FROM = typer.Option(
    "", "--from", help="Do this step and the ones after it again although they are finished: train (in a new directory), evaluate, report."
)
EXPERIMENT = typer.Option("", help="Experiment in KFP; empty takes iddpm, which is made if it is missing.")
CREATE_EXPERIMENT = typer.Option(False, "--create-experiment", help="Create the experiment if it is missing.")
CLUSTER_ZONE = typer.Option("UTC", help="Time zone in which KFP reads cron expressions; `iddpm doctor` shows it.")
MAX_ERROR = typer.Option(0.005, help="Largest expected error of a rebuilt average, relative to the distance from weights to average.")
JSON = typer.Option(False, "--json", help="Print JSON.")
MAX_SEED = 2**32 - 1
"""The largest seed of an experiment, and so of a command."""
MODEL = typer.Argument(..., help="A checkpoint's or a run's directory (s3:// or a path), a run's key, runs:/ID, or models:/NAME@ALIAS.")
PIPELINE = typer.Argument(..., help="train, ablation, nightly-fid, compare or tune.")
TRAINED = typer.Argument(
    "", metavar="EXPERIMENT", help="Preset, or experiment file (TOML) like my.toml; with ablation, the name of one like hybrid-weight."
)


def _option(default: Any, *names: str, help_text: str) -> Any:
    return typer.Option(default, *names, help=help_text, rich_help_panel="Connection to KFP")


_CONNECTION: dict[str, tuple[type, Any]] = {
    "endpoint": (str, _option("", help_text="Address of KFP, like https://kfp.example.com; empty reads KF_PIPELINES_ENDPOINT.")),
    "port_forward": (bool, _option(False, "--port-forward", help_text="Connect through kubectl port-forward.")),
    "kfp_namespace": (str, _option("kubeflow", help_text="Namespace of KFP.")),
    "token_file": (str, _option("", help_text="File with a token for KFP; empty reads KFP_TOKEN, or in a pod its own token.")),
    "ca_file": (str, _option("", help_text="File of certificates to trust; empty reads SSL_CERT_FILE.")),
    "namespace": (str, _option("", help_text="Your namespace, if KFP serves several users.")),
}


def with_connection(command: Callable[..., None]) -> Callable[..., None]:
    """Turn a command whose first parameter is a `Connection` into one that has an option for each of its fields."""

    @functools.wraps(command)
    def run(**options: Any) -> None:
        connection = Connection(**{name: options.pop(name) for name in _CONNECTION})
        command(connection, **options)

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
    """Print a line of the result."""
    print(line, flush=True)


def err(line: str) -> None:
    """Print a line of progress to standard error."""
    print(line, file=sys.stderr, flush=True)


def warn(line: str) -> None:
    """Print a warning to standard error."""
    err(f"warning: {line}")


def print_table(rows: list[tuple[str | None, ...]]) -> None:
    """Print rows with aligned columns."""
    for line in table(rows):
        out(line)


def table(rows: Sequence[tuple[str | None, ...]]) -> list[str]:
    """Return rows as lines with aligned columns. A wide letter, as of Chinese, takes two places on a terminal."""
    cells = [[cell or "" for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def format_time(text: str, zone: str = "UTC") -> str:
    """Return an ISO time to the minute; "-" for none."""
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M} {zone}" if text else "-"


def format_upload(is_new: bool) -> str:
    """Return what happened to a pipeline's version."""
    return "(uploaded)" if is_new else "(already there)"
