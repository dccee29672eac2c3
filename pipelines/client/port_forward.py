"""Forward a service of the cluster to a free port on loopback, by `kubectl port-forward`, for the duration of a command."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator

from pipelines.services.home import free_ports
from training.distributed.signals import stop_flag, termination_raised

_START_SECONDS = 30.0
_STOP_SECONDS = 5.0
_LOG_SECONDS = 60.0


class PortForwardError(RuntimeError):
    """kubectl does not forward the port. Not a `UserError`: the cluster may be the cause."""


class PortForward:
    """One service on one port of loopback.

    kubectl ends when the service's pod does, or when the API server closes an idle connection; `ensure` starts it again
    on the same port.
    """

    def __init__(self, namespace: str, service: str, port: int) -> None:
        """Choose a local port; `ensure` opens it. Raise PortForwardError if kubectl is not installed."""
        found = shutil.which("kubectl")
        if found is None:
            raise PortForwardError("--port-forward needs kubectl, which is not on the PATH; install it, or give --endpoint")
        self._kubectl = found
        self._namespace, self._service, self._port = namespace, service, port
        self.local_port = free_ports(1)[0]
        self._process: subprocess.Popen[str] | None = None
        self._errors = tempfile.TemporaryFile("w+", errors="replace", encoding="utf-8")  # noqa: SIM115 - lives as long as this object

    @property
    def url(self) -> str:
        """Address of the service on loopback."""
        return f"http://127.0.0.1:{self.local_port}"

    def ensure(self) -> None:
        """Start kubectl unless it runs; raise PortForwardError if it refuses, or the port is not open after 30 s."""
        if self._process is not None and self._process.poll() is None:
            return
        arguments = ["port-forward", "--address", "127.0.0.1", f"svc/{self._service}", f"{self.local_port}:{self._port}"]
        with stop_flag():
            # In its own session: Ctrl-C is for this process, which still needs the port for its clean-up.
            self._process = subprocess.Popen(
                [self._kubectl, "--namespace", self._namespace, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                start_new_session=True,
            )
        process, is_open = self._process, threading.Event()
        threading.Thread(target=_read_output, args=(process, is_open), daemon=True).start()
        waited = 0.0
        while not is_open.wait(0.1):
            waited += 0.1
            if process.poll() is not None or waited > _START_SECONDS:
                failure = self._failure(process)
                self._stop()  # the next call starts another one
                raise PortForwardError(failure)

    def pod_log(self, namespace: str, pod: str) -> str:
        """Return what a pod has written so far; empty if kubectl can't tell, as of a pod that is gone."""
        command = [self._kubectl, "--namespace", namespace, "logs", pod, "--container", "main"]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_LOG_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout.decode(errors="replace") if done.returncode == 0 else ""

    def close(self) -> None:
        """End kubectl."""
        self._stop()
        self._errors.close()

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _failure(self, process: subprocess.Popen[str]) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        problem = f"kubectl does not forward svc/{self._service} of namespace {self._namespace}"
        if process.poll() is None:
            return f"{problem}: no answer for {_START_SECONDS:.0f} s; is the cluster reachable?"
        cause = lines[-1][:300] if lines else f"it ended with {process.returncode}"
        return f"{problem}: {cause} (are KUBECONFIG and --kfp-namespace right?)"


@contextlib.contextmanager
def forward_port(namespace: str, service: str, port: int) -> Iterator[PortForward]:
    """Forward a service to loopback until the block ends, also by SIGTERM; raise PortForwardError if kubectl can't."""
    with termination_raised():
        forward = PortForward(namespace, service, port)
        try:
            forward.ensure()
            yield forward
        finally:
            forward.close()


def _read_output(process: subprocess.Popen[str], is_open: threading.Event) -> None:
    """Read kubectl's output to its end, so that kubectl never blocks on a full pipe."""
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            if line.startswith("Forwarding from"):
                is_open.set()
