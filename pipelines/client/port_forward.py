"""A service of the cluster on a free port of loopback, by `kubectl port-forward`, for the time of a command."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator

from pipelines.services.daemons import signals_deferred, termination_raised
from pipelines.services.ports import free_ports

_SECONDS_TO_COME_UP = 30.0
_SECONDS_TO_END = 5.0


class PortForwardError(RuntimeError):
    """The way through kubectl does not open; one line with the remedy."""


class PortForward:
    """One service on one port of loopback.

    kubectl ends when the service's pod does, or when the API server cuts a connection that was idle; `ensure` opens it
    again at the same port.
    """

    def __init__(self, namespace: str, service: str, port: int) -> None:
        """Names the service; `ensure` opens the way.

        Raises:
            PortForwardError: There is no kubectl.
        """
        found = shutil.which("kubectl")
        if found is None:
            raise PortForwardError("--port-forward needs kubectl, which is not on the PATH; install it, or give --endpoint")
        self._kubectl = found
        self._namespace, self._service, self._port = namespace, service, port
        self.local_port = free_ports(1)[0]
        self._process: subprocess.Popen[str] | None = None
        self._said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - lives as long as this object

    @property
    def url(self) -> str:
        """Where the service is reached."""
        return f"http://127.0.0.1:{self.local_port}"

    def ensure(self) -> None:
        """Opens the way where it is not open.

        Raises:
            PortForwardError: kubectl refuses, or takes too long.
        """
        if self._process is not None and self._process.poll() is None:
            return
        words = ["port-forward", "--address", "127.0.0.1", f"svc/{self._service}", f"{self.local_port}:{self._port}"]
        with signals_deferred():
            # A session of its own: Ctrl-C is ours to act on, while the way is still open.
            self._process = subprocess.Popen(
                [self._kubectl, "--namespace", self._namespace, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
                start_new_session=True,
            )
        process, is_open = self._process, threading.Event()
        threading.Thread(target=_listen, args=(process, is_open), daemon=True).start()
        waited = 0.0
        while not is_open.wait(0.1):
            waited += 0.1
            if process.poll() is not None or waited > _SECONDS_TO_COME_UP:
                raise PortForwardError(self._why_not(process))

    def close(self) -> None:
        """Ends kubectl."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._said.close()

    def _why_not(self, process: subprocess.Popen[str]) -> str:
        self._said.seek(0)
        lines = [line.strip() for line in self._said if line.strip()]
        what = f"kubectl does not forward svc/{self._service} of namespace {self._namespace}"
        if process.poll() is None:
            return f"{what}: it is silent for {_SECONDS_TO_COME_UP:.0f} s; is the cluster reachable?"
        return f"{what}: {lines[-1][:300] if lines else f'it ended with {process.returncode}'} (is KUBECONFIG right, and --kfp-namespace?)"


@contextlib.contextmanager
def forwarded(namespace: str, service: str, port: int) -> Iterator[PortForward]:
    """A service on loopback until the block ends, also by SIGTERM.

    Raises:
        PortForwardError: There is no kubectl, or it refuses.
    """
    with termination_raised():
        forward = PortForward(namespace, service, port)
        try:
            forward.ensure()
            yield forward
        finally:
            forward.close()


def _listen(process: subprocess.Popen[str], is_open: threading.Event) -> None:
    """Reads what kubectl prints, also later, so that it never waits for a reader."""
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            if line.startswith("Forwarding from"):
                is_open.set()
