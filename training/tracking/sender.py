"""Send requests to MLflow in the background, in order, and repeat each while the server is away.

Adding a request never waits for the network, so training goes on while a server restarts.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from training.console import say
from training.storage.errors import StorageError
from training.tracking.client import is_local, is_transient, shortened

_CAPACITY = 512
_MAX_PAUSE_SECONDS = 30.0
_FLUSH_PAUSE_SECONDS = 0.5
_IDLE_SECONDS = 60.0
_FAILURES_OF_FILE = 5


class BackgroundSender:
    """A queue of requests, and a daemon thread that sends them; the thread ends after a minute without one.

    A request is repeated until it succeeds, can't succeed or the process ends, so it must be harmless to repeat. A file that fails while
    MLflow answers is given up after some attempts: MLflow's artifact store may be full for days, and numbers and status must not wait
    for it. `kept_in` says in messages where the numbers are until MLflow has them.
    """

    def __init__(self, *, kept_in: str) -> None:
        self._kept_in = kept_in
        self._requests: queue.Queue[tuple[str, Callable[[], object], Callable[[], object] | None]] = queue.Queue(_CAPACITY)
        self._thread: threading.Thread | None = None
        self._thread_lock = threading.Lock()  # a request comes before the thread ends, or starts another
        self._is_full = False
        self._failed: set[str] = set()
        self._num_flushing = 0
        self._flushing = threading.Event()

    def put(self, name: str, send: Callable[[], object], *, ask: Callable[[], object] | None = None) -> bool:
        """Add a request; return False if there is no room for it, after hours without an answer.

        Args:
            name: Its name in messages.
            send: Does it; called in the background thread.
            ask: For a file: asks MLflow for something else, to learn whether MLflow answers.
        """
        with self._thread_lock:
            try:
                self._requests.put_nowait((name, send, ask))
            except queue.Full:
                if not self._is_full:
                    say(f"MLflow has been away for so long that {name} and what follows wait in the run's directory only")
                self._is_full = True
                return False
            self._is_full = False
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sender to MLflow", daemon=True)
                self._thread.start()
        return True

    def wait(self, seconds: float) -> None:
        """Wait until the time is over or `flush` is called; only for requests that run in the thread."""
        self._flushing.wait(seconds)

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until the queue is empty; return False if it was not in that time."""
        with self._requests.all_tasks_done:  # the queue's own condition, because `Queue.join` has no time-out
            self._num_flushing += 1
            self._flushing.set()
            try:
                return self._requests.all_tasks_done.wait_for(lambda: not self._requests.unfinished_tasks, timeout=timeout_seconds)
            finally:
                self._num_flushing -= 1
                if not self._num_flushing:
                    self._flushing.clear()

    def _run(self) -> None:
        while True:
            try:
                name, send, ask = self._requests.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                with self._thread_lock:
                    if self._requests.empty():
                        self._thread = None
                        return
                continue
            self._deliver(name, send, ask)
            del send, ask  # they refer to all that is sent
            self._requests.task_done()

    def _deliver(self, name: str, send: Callable[[], object], ask: Callable[[], object] | None) -> None:
        import tenacity

        num_failures_of_file, is_away = 0, False

        def is_given_up(state: tenacity.RetryCallState) -> bool:
            nonlocal num_failures_of_file, is_away
            if ask is not None and _is_answered(ask):
                num_failures_of_file += 1
            elif not is_away and state.outcome is not None:
                is_away = True
                error = state.outcome.exception()
                server = "the run's directory" if isinstance(error, StorageError) else "MLflow"
                kept = "memory" if isinstance(error, StorageError) else self._kept_in
                reason = shortened(error or Exception())
                say(f"{server} does not answer; work goes on, the numbers are kept in {kept} and sent once it answers ({reason})")
            return num_failures_of_file >= _FAILURES_OF_FILE

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_transient),
            stop=is_given_up,
            wait=tenacity.wait_exponential(1.0, max=_MAX_PAUSE_SECONDS),
            sleep=self._pause,
            reraise=True,
        )
        try:
            retrying(send)
        except Exception as error:  # no exception of a client library may end training
            if is_transient(error):
                say(f"MLflow answers, but does not take {name}; the next step or the same command sends it ({shortened(error)})")
            elif not is_local(error):
                say(f"MLflow refused {name}: {shortened(error)}")
            elif name not in self._failed:  # metrics come again and again
                self._failed.add(name)
                say(f"work goes on, but {name} can't be sent to MLflow: {shortened(error)}")
        else:
            self._failed.discard(name)
            if is_away:
                say("MLflow answers again; what was kept is being sent")

    def _pause(self, seconds: float) -> None:
        if self._flushing.wait(seconds):  # `flush` is waiting: try twice a second
            time.sleep(_FLUSH_PAUSE_SECONDS)


def _is_answered(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except Exception as error:
        return not is_transient(error)
    return True
