"""The console script `iddpm`: Ctrl-C ends it without a traceback, also while the modules of the command line are imported."""

from __future__ import annotations

import os
import signal
import sys

_INTERRUPTED = 130


def main() -> None:
    """Run the command of this process, as `pipelines.cli.main.main` does."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # else Ctrl-C is ignored, as in the background of a script
        # An exception could be lost in a callback of the import system, or become another one in a library.
        signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
    from pipelines.cli.main import main as run

    try:
        signal.signal(signal.SIGINT, handler)
        run()
    except KeyboardInterrupt:  # before typer, which ends a command that has begun
        sys.exit(_INTERRUPTED)
