"""The command line `iddpm`: each command is a few lines around a function that Python can call too.

Results go to standard output, progress to standard error. An error is one line there and an exit status other than 0;
`--debug` shows the traceback instead.
"""

from __future__ import annotations

import errno
import sys
import tempfile

import typer

from pipelines.cli import (
    ablations,
    cluster,
    data,
    models,
    nightly,
    reproduce,
    retention,
    runs,
    schedules,
    scoring,
    services,
    serving,
    studies,
    tune,
)
from training import console
from training.config.addresses import without_passwords
from training.distributed.signals import termination_raised

_PACKAGES = ("training", "evaluation", "components", "pipelines")

app = typer.Typer(
    name="iddpm",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Improved DDPM as pipelines: prepare data, train, evaluate and report, on this machine or on Kubeflow.",
    epilog="To begin, `iddpm demo` trains a small model of real handwritten digits in a few minutes.",
)
for group in (services, runs, tune, models, scoring, serving, nightly, studies, ablations, reproduce, data, retention, cluster, schedules):
    group.register(app)


@app.callback()
def _options(debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error.")) -> None:
    """Accept the option; `main` reads it."""


def main() -> None:
    """Run the command of this process."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) != len(sys.argv) - 1
    try:
        with console.output_marks(False), termination_raised():
            app(arguments)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `iddpm presets | head`
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        if debug:
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        sys.exit(getattr(error, "exit_status", 1))


def _one_line(error: Exception) -> str:
    message = without_passwords(" ".join(str(error).split()))
    log_path = getattr(error, "log_path", None)
    if log_path is not None:
        message += f" (the whole log: {log_path})"
    # Messages of the project name the remedy. Any other error is a defect of ours or of a library.
    module = type(error).__module__.split(".")[0]
    if isinstance(error, ValueError) or module in _PACKAGES:
        return message
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # of standard output, or of a scratch file
        return f"{error.filename or 'a file of this command'}: the disk is full; free some space there or in {tempfile.gettempdir()}"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"  # a user's path
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] not in _PACKAGES:
        return f"the Python package {error.name} is not installed here; `make setup` installs all, the image has what a step needs"
    return f"{type(error).__name__}: {message or 'no message'} (unexpected; --debug shows where)"


if __name__ == "__main__":
    main()
