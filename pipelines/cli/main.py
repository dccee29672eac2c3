"""The command line `iddpm`: each command is a few lines around a function that Python can call too.

Results go to standard output, progress to standard error. An error is one line there and an exit status other than 0;
`--debug` shows the traceback instead.
"""

from __future__ import annotations

import errno
import io
import sys
import tempfile
from collections.abc import Callable, Sequence

import typer

from pipelines.cli import services
from pipelines.cli.help import Command
from pipelines.cli.models import experiments, nightly, scoring, serving, studies
from pipelines.cli.options import with_connection
from pipelines.cli.paper import ablations, reproduce
from pipelines.cli.runs import cluster, local, schedules, tune
from pipelines.cli.storage import data, retention
from training import console
from training.config.addresses import without_passwords
from training.config.errors import UserError
from training.distributed.signals import termination_raised

_PACKAGES = ("training", "evaluation", "components", "pipelines")

app = typer.Typer(
    name="iddpm",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Improved DDPM as pipelines: prepare data, train, evaluate and report, on this machine or on Kubeflow.",
    epilog="To begin, `iddpm demo` trains a small model of real handwritten digits in a few minutes.",
)
_ON_CLUSTER: Sequence[Callable[..., None]] = (cluster.submit, cluster.retry, cluster.runs, cluster.logs, cluster.cancel, cluster.doctor)
_COMMANDS: dict[str, Sequence[Callable[..., None]]] = {
    "Services on this machine": (services.up, services.down, services.status),
    "Pipelines": (local.demo, local.init, local.train, local.run, local.compile_pipelines, tune.tune),
    "Experiments and models": (
        *(experiments.presets, experiments.show, experiments.cost),
        *(experiments.import_checkpoint, experiments.export, experiments.rebuild_average),
    ),
    "Samples and scores": (
        *(scoring.sample, scoring.evaluate, scoring.compare, scoring.learn_steps, scoring.learn_variance, scoring.metrics, serving.serve),
        *(studies.ema_sweep, studies.guidance_sweep, studies.replay_stopping, studies.memorisation),
        *(studies.score_batch, studies.adopt_reference),
    ),
    "The paper": (ablations.list_ablations, ablations.ablate, ablations.report, reproduce.reproduce),
    "Data": (data.preprocess,),
    "Storage": (retention.gc, retention.verify),
    "On a cluster": (*map(with_connection, _ON_CLUSTER), cluster.images),
}
"""Panel of the help -> its commands, each named after its function."""
_SCHEDULES: Sequence[Callable[..., None]] = (
    schedules.create,
    schedules.list_schedules,
    schedules.pause,
    schedules.resume,
    schedules.delete,
)
_GROUPS: dict[str, tuple[str, str, Sequence[Callable[..., None]]]] = {
    "nightly": ("Samples and scores", "Look at a model's nightly scores, and accept a new level.", (nightly.show, nightly.accept)),
    "dataset": ("Data", "Inspect a data set: info, verify, preview.", (data.info, data.verify, data.preview)),
    "schedule": (
        "On a cluster",
        "Manage recurring runs: create, list, pause, resume, delete.",
        tuple(map(with_connection, _SCHEDULES)),
    ),
}
"""Name of a group of commands -> its panel, its help, and its commands."""
_NAMES = {"compile_pipelines": "compile", "list_ablations": "ablations", "list_schedules": "list"}

for panel, commands in _COMMANDS.items():
    for command in commands:
        app.command(_NAMES.get(command.__name__), cls=Command, rich_help_panel=panel)(command)
for name, (panel, words, commands) in _GROUPS.items():
    group = typer.Typer(no_args_is_help=True, help=words)
    for command in commands:
        group.command(_NAMES.get(command.__name__), cls=Command)(command)
    app.add_typer(group, name=name, rich_help_panel=panel)


@app.callback()
def _options(debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error.")) -> None:
    """Accept the option; `main` reads it."""


def main() -> None:
    """Run the command of this process."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) != len(sys.argv) - 1
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a name that the terminal's encoding lacks must not end a table
    try:
        with console.output_marks(False), termination_raised():
            app(arguments)
    except Exception as error:
        if debug:
            raise
        print(console.printable(f"error: {_one_line(error)}"), file=sys.stderr)
        sys.exit(getattr(error, "exit_status", 1))


def _one_line(error: Exception) -> str:
    message = without_passwords(" ".join(str(error).split()))
    log_path = getattr(error, "log_path", None)
    if log_path is not None:
        message += f" (the whole log: {log_path})"
    # Messages of the project name the remedy. Any other error is a defect of ours or of a library.
    module = type(error).__module__.split(".")[0]
    if isinstance(error, UserError) or module in _PACKAGES:
        return message
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # in standard output, or in a scratch file
        return f"{error.filename or 'a file of this command'}: the disk is full; free some space there or in {tempfile.gettempdir()}"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"  # a user's path
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] not in _PACKAGES:
        return f"the Python package {error.name} is not installed here; `make setup` installs all, the image has what a step needs"
    return f"{type(error).__name__}: {message or 'no message'} (unexpected; --debug shows where)"


if __name__ == "__main__":
    main()
