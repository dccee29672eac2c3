"""The image, built and run for real with podman and runc: `make image-test`.

It is built on a Debian of its own, which debootstrap makes once and podman keeps, or on what BASE_IMAGE names. pytest
does not collect this file by itself: it takes minutes, gigabytes of disk, and for debootstrap a root user.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from make_base import BASE, make_base

from components.container.build import ROOT, BuildError, pip_configuration, podman_limits
from pipelines.services.services import Services
from training import storage
from training.tracking.runs import attach

_PODMAN = ("podman", "--runtime", "runc")
_IMAGE = "localhost/iddpm-pipelines:image-test"
_CANARY = "image-test-canary.invalid"
_SMALL_LAYER = 10_000_000
_CPU_IMAGE_BYTES = 2_500_000_000
_CUDA_IMAGE_BYTES = 7_000_000_000

# As Kubernetes runs it under the policy "restricted", by a user whom the image does not know.
_USER = "12345:0"
_RESTRICTED = (
    *("--read-only", "--read-only-tmpfs=false", "--user", _USER, "--passwd=false", "--tmpfs", "/tmp"),
    *("--cap-drop", "all", "--security-opt", "no-new-privileges", "--shm-size", "1g"),
)
_OVERRIDES = (
    "optim.num_steps=40",
    "optim.checkpoint_interval=20",
    "evaluation.scoring_num_samples=50",
    "evaluation.num_samples=100",
    "evaluation.sampling.spacing=5",
    "evaluation.scoring_sampling.spacing=ddim5",
    "evaluation.rescore_best=1",
    "evaluation.likelihood_num_images=10",
    "evaluation.likelihood_steps=5",
)


def _say(message: str) -> None:
    print(f"\n  {message}", flush=True)


def _podman(*words: str, check: bool = True) -> str:
    limits = podman_limits() if words[0] == "run" else ()
    done = subprocess.run([*_PODMAN, words[0], *limits, *words[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, f"podman {' '.join(words)}: {done.stderr or done.stdout}"
    return done.stdout


def _run(*command: str, options: Sequence[str] = ()) -> str:
    return _podman("run", "--rm", *options, _IMAGE, *command)


@pytest.fixture(scope="session", autouse=True)
def _quiet_podman() -> None:
    os.environ["PODMAN_IGNORE_CGROUPSV1_WARNING"] = "true"


@pytest.fixture(scope="session")
def base_image(_quiet_podman: None) -> str:
    """BASE_IMAGE, else a small Debian with Python, which is made where there is none yet."""
    if named := os.environ.get("BASE_IMAGE"):
        return named
    try:
        make_base(list(_PODMAN))
    except BuildError as error:
        pytest.exit(f"image-test: {error}", 1)
    return BASE


def _build(image: str, base_image: str, context: Path) -> None:
    """Builds as `make image` does; pip's configuration carries a word that must not be found again."""
    trusted = f"{pip_configuration().options.get('trusted-host', '')} {_CANARY}".strip()
    wanted = {"ENGINE": " ".join(_PODMAN), "IMAGE": image, "BASE_IMAGE": base_image, "PIP_TRUSTED_HOST": trusted}
    built = subprocess.run(
        [sys.executable, "-m", "components.container.build"],
        cwd=context,
        env={**os.environ, **wanted},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, f"{built.stdout[-6000:]}\n{built.stderr[-6000:]}"
    _say(next(line for line in built.stdout.splitlines() if line.startswith("image: built")))


@pytest.fixture(scope="session", autouse=True)
def image(base_image: str) -> None:
    """The image of this checkout."""
    _say("building the image (the first time some minutes) ...")
    _build(_IMAGE, base_image, ROOT)


def _inspected(image: str = _IMAGE) -> dict[str, Any]:
    (inspected,) = json.loads(_podman("image", "inspect", image))
    return dict(inspected)


def test_it_proves_itself_as_its_own_user() -> None:
    said = _run("python", "-m", "components.container.self_test", options=["--shm-size", "1g"])
    _say(said.replace("\n", "\n  ").rstrip())
    assert "FAIL" not in said
    assert "user 10001, group 0" in said
    assert "/tmp and /home/iddpm" in said


def test_it_proves_itself_as_a_user_it_does_not_know_on_a_root_that_nobody_can_write() -> None:
    said = _run("python", "-m", "components.container.self_test", options=_RESTRICTED)
    assert "FAIL" not in said
    assert re.search(r"user 12345, group 0, named iddpm; writable are /tmp$", said, re.MULTILINE)


def test_a_volume_in_the_place_of_the_home_is_used() -> None:
    written = _run("sh", "-c", "echo kept > ~/file && cat ~/file", options=[*_RESTRICTED, "--tmpfs", "/home/iddpm:mode=0775"])
    assert written.strip() == "kept"


def test_its_user_is_a_number_which_is_not_roots() -> None:
    assert _inspected()["User"] == "10001:0"


def test_its_labels_say_what_it_is() -> None:
    labels = _inspected()["Labels"]
    names = ("title", "description", "version", "revision", "created")
    assert all(labels[f"org.opencontainers.image.{name}"] for name in names)


def test_nothing_that_pip_was_told_is_in_it(base_image: str) -> None:
    """Neither in its files nor in what is written about it; what the base says of itself is the base's."""
    steps, below = (_podman("history", "--no-trunc", "--format", "{{.CreatedBy}}", name).splitlines() for name in (_IMAGE, base_image))
    ours = "\n".join(steps[: len(steps) - len(below)])
    assert "components.container.self_test" in ours
    assert not re.search(r"https?://|PIP_|TORCH_INDEX", ours)
    told = {_CANARY, *(value for name, value in pip_configuration().options.items() if name not in ("timeout", "retries"))}
    about = json.dumps(_inspected()["Config"]) + ours
    assert [word for word in told if word in about] == []
    found = _podman(
        "run", "--rm", "--user", "0", _IMAGE, "grep", "-rlF", _CANARY, "/opt", "/etc", "/home", "/root", "/var", "/run", check=False
    )
    assert found == ""


def test_it_is_of_a_size_that_can_be_pulled() -> None:
    has_cuda = _run("python", "-c", "import torch; print(torch.version.cuda is not None)").strip() == "True"
    assert _inspected()["Size"] < (_CUDA_IMAGE_BYTES if has_cuda else _CPU_IMAGE_BYTES)


def test_a_change_of_the_source_is_one_small_layer(base_image: str, tmp_path: Path) -> None:
    changed = f"{_IMAGE}-changed"
    for name in ("training", "evaluation", "components", "pipelines", "pyproject.toml", "constraints.txt", "README.md", ".dockerignore"):
        source, copy = ROOT / name, tmp_path / name
        shutil.copytree(source, copy) if source.is_dir() else shutil.copy2(source, copy)
    with (tmp_path / "training" / "progress.py").open("a") as file:
        file.write(f'\n"""{uuid.uuid4()}"""\n')
    try:
        _build(changed, base_image, tmp_path)
        before, after = (_inspected(name)["RootFS"]["Layers"] for name in (_IMAGE, changed))
        steps = json.loads(_podman("history", "--format", "json", changed))  # the newest first
        source = next(index for index, step in enumerate(steps) if "COPY" in step["CreatedBy"])
    finally:
        _podman("image", "rm", "--force", changed)
    same = next(index for index, (ours, theirs) in enumerate(zip(before, after, strict=True)) if ours != theirs)
    assert same >= len(before) - 2  # the project's own files, and what checking them may have left
    assert sum(step["size"] for step in steps[: source + 1]) < _SMALL_LAYER


@contextlib.contextmanager
def _container(*command: str, options: Sequence[str]) -> Iterator[str]:
    name = f"iddpm-image-test-{uuid.uuid4().hex[:8]}"
    _podman("run", "--detach", "--name", name, *options, _IMAGE, *command)
    try:
        yield name
    finally:
        _podman("rm", "--force", "--time", "5", name)


def _status(url: str, password: str | None = None) -> int:
    request = urllib.request.Request(url)
    if password is not None:
        import base64

        request.add_header("Authorization", "Basic " + base64.b64encode(f"admin:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_it_serves_mlflow_with_names_and_passwords_as_the_cluster_runs_it(tmp_path: Path) -> None:
    """The cluster's own configuration, with files in place of PostgreSQL."""
    cluster = (ROOT / "k8s" / "components" / "mlflow-auth" / "basic_auth.ini").read_text()
    configuration = tmp_path / "basic_auth.ini"
    configuration.write_text(re.sub("(?m)^database_uri = .*$", "database_uri = sqlite:////tmp/auth.db", cluster))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "HOME": "/tmp",
        "MLFLOW_BACKEND_STORE_URI": "sqlite:////tmp/mlflow.db",
        "MLFLOW_WORKERS": "1",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_AUTH_CONFIG_PATH": "/etc/mlflow/basic_auth.ini",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": uuid.uuid4().hex,
        "MLFLOW_AUTH_ADMIN_PASSWORD": "a-password-of-tests",
    }
    options = [*_RESTRICTED, "--network", "host", "--volume", f"{configuration}:/etc/mlflow/basic_auth.ini:ro"]
    options += [word for name, value in environment.items() for word in ("--env", f"{name}={value}")]
    command = ("mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--app-name", "basic-auth")
    with _container(*command, options=options) as name:
        deadline = time.monotonic() + 180
        while _status(f"http://127.0.0.1:{port}/health") != 200:
            assert time.monotonic() < deadline, subprocess.run(
                ["podman", "logs", name], capture_output=True, text=True, check=False
            ).stderr[-3000:]
            time.sleep(0.5)
        experiment = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get?experiment_id=0"
        assert _status(experiment) == 401
        assert _status(experiment, "a-password-of-tests") == 200


@pytest.fixture
def docker_host(tmp_path: Path) -> Iterator[str]:
    """The address of a podman that answers docker's clients."""
    path, settings = tmp_path / "podman.sock", tmp_path / "containers.conf"
    limits = [word for word in podman_limits() if word != "--ulimit"]
    settings.write_text(f"[containers]\ndefault_ulimits = {json.dumps(limits)}\n")  # docker's clients name none
    environment = {**os.environ, "CONTAINERS_CONF": str(settings)}
    with subprocess.Popen([*_PODMAN, "system", "service", "--time", "0", f"unix://{path}"], env=environment) as service:
        try:
            deadline = time.monotonic() + 30
            while not path.exists():
                assert service.poll() is None, "podman's service ended"
                assert time.monotonic() < deadline, "podman's service does not listen"
                time.sleep(0.1)
            yield f"unix://{path}"
        finally:
            service.terminate()
            service.wait(timeout=30)


def test_every_step_of_the_demo_runs_in_a_container_of_it(services: Services, docker_host: str) -> None:
    """A container that failed is a success to kfp's DockerRunner, so what the steps left behind is what counts."""
    name = f"image-{uuid.uuid4().hex[:8]}"
    arguments = {
        "experiment_overrides": list(_OVERRIDES),
        "storage_root_uri": f"{services.bucket_uri}/{name}",
        "tracking_experiment": name,
    }
    container = {
        "environment": services.env,
        "network_mode": "host",
        "user": _USER,
        "read_only": True,
        "tmpfs": {"/tmp": "mode=1777"},
        "shm_size": "1g",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
    }
    # Not pytest's own folder, which only its owner may enter.
    with tempfile.TemporaryDirectory(prefix="iddpm-image-test-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        root, result = home / "pipelines", home / "result.json"
        root.mkdir()
        root.chmod(0o777)
        job = {"image": _IMAGE, "arguments": arguments, "container": container, "pipeline_root": str(root), "result_path": str(result)}
        (home / "job.json").touch(mode=0o600)
        (home / "job.json").write_text(json.dumps(job))
        _say("running the demo's steps in containers ...")
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("steps_in_containers.py")), str(home / "job.json")],
            env={**os.environ, "DOCKER_HOST": docker_host},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-8000:]
        came_out = json.loads(result.read_text())
        assert done.stdout.count(f"Found image '{_IMAGE}'") == came_out["num_steps"], done.stdout[-8000:]
        (page,) = root.glob("*/report/page")
        assert page.stat().st_uid == int(_USER.split(":")[0])
        assert "FD(digits-classifier)" in page.read_text()
    _assert_trained_and_scored(came_out["run_uri"])
    left = _podman("ps", "--all", "--quiet", "--filter", f"ancestor={_IMAGE}")
    assert left == "", "a container of the pipeline is still there"


def _assert_trained_and_scored(run_uri: str) -> None:
    trained = storage.read_json(f"{run_uri}/result.json")
    final = storage.read_json(f"{run_uri}/evaluations/final.json")
    assert trained["step"] == 40
    assert final["distance_name"] == "FD(digits-classifier)"
    assert final["distance"] > 0
    tracked = attach(trained["tracking_run_id"])
    assert [step for step, _ in tracked.metric_history("score/best")] == [20, 40]
    assert tracked.metric_history("final/distance") == [(final["step"], final["distance"])]
