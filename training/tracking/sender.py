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
from training.tracking.client import in_one_line, is_local, is_transient

_CAPACITY = 512
_MAX_PAUSE_SECONDS = 30.0
_FLUSH_PAUSE_SECONDS = 0.5
_IDLE_SECONDS = 60.0


class BackgroundSender:
    """A queue of requests with one daemon thread, which ends when there was none for a minute.

    A request is repeated until it succeeds, can't succeed or the process ends, so it must be harmless to repeat. `kept_in` says in
    messages where the numbers are until MLflow has them.
    """

    def __init__(self, *, kept_in: str) -> None:
        self._kept_in = kept_in
        self._requests: queue.Queue[tuple[str, Callable[[], object]]] = queue.Queue(_CAPACITY)
        self._thread: threading.Thread | None = None
        self._thread_lock = threading.Lock()  # a request comes before the thread ends, or starts another
        self._is_full = False
        self._failed: set[str] = set()
        self._num_flushing = 0
        self._flushing = threading.Event()

    def put(self, name: str, send: Callable[[], object]) -> bool:
        """Add a request; return False if there is no room for it, after hours without an answer.

        Args:
            name: Its name in messages.
            send: Does it; called in the background thread.
        """
        with self._thread_lock:
            try:
                self._requests.put_nowait((name, send))
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
                name, send = self._requests.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                with self._thread_lock:
                    if self._requests.empty():
                        self._thread = None
                        return
                continue
            self._deliver(name, send)
            del send  # it refers to all that it sends
            self._requests.task_done()

    def _deliver(self, name: str, send: Callable[[], object]) -> None:
        import tenacity

        def report_first(state: tenacity.RetryCallState) -> None:
            if state.attempt_number == 1 and state.outcome is not None:
                error = state.outcome.exception()
                server = "the run's directory" if isinstance(error, StorageError) else "MLflow"
                kept = "memory" if isinstance(error, StorageError) else self._kept_in
                reason = in_one_line(error or Exception())
                say(f"{server} does not answer; work goes on, the numbers are kept in {kept} and sent once it answers ({reason})")

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_transient),
            wait=tenacity.wait_exponential(1.0, max=_MAX_PAUSE_SECONDS),
            sleep=self._pause,
            before_sleep=report_first,
            reraise=True,
        )
        try:
            retrying(send)
        except Exception as error:  # no exception of a client library may end training
            if not is_local(error):
                say(f"MLflow refused {name}: {in_one_line(error)}")
            elif name not in self._failed:  # metrics come again and again
                self._failed.add(name)
                say(f"work goes on, but {name} can't be sent to MLflow: {in_one_line(error)}")
        else:
            self._failed.discard(name)
            if retrying.statistics["attempt_number"] > 1:
                say("MLflow answers again; what was kept is being sent")

    def _pause(self, seconds: float) -> None:
        if self._flushing.wait(seconds):  # `flush` is waiting: try twice a second
            time.sleep(_FLUSH_PAUSE_SECONDS)
