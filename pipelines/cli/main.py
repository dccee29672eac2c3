"""The command line, `iddpm`: every command is a few lines around a function that also Python can call.

Results go to standard output, progress to standard error. An error is one line there and an exit status other than 0;
`--debug` shows the traceback instead.
"""

from __future__ import annotations

import sys

import typer

from pipelines.cli import ablations, cluster, data, models, runs, scoring, services, studies
from pipelines.cli import schedules as schedule
from training import console as progress
from training.config.addresses import without_passwords

app = typer.Typer(
    name="iddpm",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Improved denoising diffusion as pipelines: prepare data, train, score and report, here or on Kubeflow.",
    epilog="New here? `iddpm demo` trains a small model of real handwritten digits in a few minutes.",
)
services.register(app)
runs.register(app)
models.register(app)
scoring.register(app)
studies.register(app)
ablations.register(app)
data.register(app)
cluster.register(app)
schedule.register(app)


@app.callback()
def _options(debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error.")) -> None:
    """Takes the option, which `main` has acted on already."""


def main() -> None:
    """Runs the command that the process was given."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) != len(sys.argv) - 1
    try:
        with progress.marking(False):
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
    # What our modules raise says what to do; anything else is a defect of ours or of a library, and says so.
    module = type(error).__module__.split(".")[0]
    if isinstance(error, ValueError) or module in ("training", "evaluation", "components", "pipelines"):
        return message
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"  # a path from outside that can't be read or written
    return f"{type(error).__name__}: {message or 'no message'} (unexpected; --debug shows where)"


if __name__ == "__main__":
    main()
