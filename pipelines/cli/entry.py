"""The console script `iddpm`: Ctrl-C ends it without a traceback, also while the modules of the command line are imported."""

from __future__ import annotations

import os
import signal
import sys

_INTERRUPTED = 130


def main() -> None:
    """Run the command of this process, as `pipelines.cli.main.main` does."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # a script's background commands ignore Ctrl-C, and that stays so
        # KeyboardInterrupt could be lost in a callback of the import system, or become another exception in a library.
        signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
    from pipelines.cli.main import main as run

    try:
        signal.signal(signal.SIGINT, handler)
        run()
    except KeyboardInterrupt:  # it came before typer, which handles it once a command has begun
        sys.exit(_INTERRUPTED)
