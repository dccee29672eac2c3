"""`make image` with docker or podman, and its error messages; the engine is a script that records its call."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import certifi
import pytest

from components.container.build import ROOT, Pip, choose_torch, parse_pip, podman_limits

_ENGINE = """#!{python}
import json, os, pathlib, sys
if "info" in sys.argv:
    print({storage!r})
    sys.exit(0 if {answers} else "Cannot connect to the daemon")
if "image" in sys.argv:
    print(2100000000)
    sys.exit(0)
secrets = [word.split("src=")[1] for word in sys.argv if "src=" in word]
texts = {{path: [pathlib.Path(path).read_text(), oct(os.stat(path).st_mode & 0o777)] for path in secrets}}
pathlib.Path({record!r}).write_text(json.dumps([sys.argv[1:], texts]))
if {finishes}:
    pathlib.Path(sys.argv[sys.argv.index("--iidfile") + 1]).write_text("sha256:0123")
sys.exit({code})
"""


class _Engine:
    """A stand-in for docker in a folder of its own, which is the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = folder / "record.json"

    def install(self, name: str = "docker", *, answers: bool = True, code: int = 0, finishes: bool = True) -> None:
        path = self.folder / name
        path.write_text(
            _ENGINE.format(
                python=sys.executable,
                answers=answers,
                record=str(self.record),
                code=code,
                finishes=finishes and not code,
                storage=str(self.folder),
            )
        )
        path.chmod(0o755)

    def build(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        # No index answers through this proxy.
        clean |= {"PATH": str(self.folder), "PIP_CONFIG_FILE": os.devnull, "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
        return subprocess.run(
            [sys.executable, "-m", "components.container.build", *arguments],
            cwd=ROOT,
            env=clean | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def call(self) -> tuple[list[str], dict[str, list[str]]]:
        words, secrets = json.loads(self.record.read_text())
        return words, secrets


@pytest.fixture
def engine(tmp_path: Path) -> _Engine:
    return _Engine(tmp_path)


def test_the_output_names_the_image_and_the_command_that_tests_it(engine: _Engine) -> None:
    engine.install()
    done = engine.build()
    assert done.returncode == 0, done.stderr
    assert "built iddpm-pipelines:0.1.0, 2.1 GB" in done.stdout
    assert "docker run --rm --shm-size 1g iddpm-pipelines:0.1.0 python -m components.container.self_test" in done.stdout
    words, _ = engine.call()
    assert words[words.index("--tag") + 1] == "iddpm-pipelines:0.1.0"


def test_help_builds_nothing_and_an_argument_is_refused(engine: _Engine) -> None:
    engine.install()
    shown = engine.build("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "TORCH_INDEX  index that torch comes from" in shown.stdout
    refused = engine.build("gpu")
    assert refused.returncode == 2
    assert "unrecognized arguments: gpu" in refused.stderr
    assert not engine.record.exists()


@pytest.fixture
def index() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200 if self.path == "/cpu/torch/" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_torch_for_the_processor_comes_from_its_own_index_if_that_answers(index: str) -> None:
    chosen = choose_torch("cpu", Pip(), f"{index}/cpu")
    assert (chosen.index_url, chosen.is_cpu_build) == (f"{index}/cpu", True)
    chosen = choose_torch("cpu", Pip(), f"{index}/none")
    assert (chosen.index_url, chosen.is_cpu_build) == ("", False)
    assert "torch is the CUDA build of pip's index" in chosen.message
    assert "does not answer (Not Found)" in chosen.message
    assert choose_torch("gpu", Pip(), f"{index}/cpu").index_url == ""


def test_a_wheel_of_torch_is_taken_before_any_index_and_an_empty_folder_is_no_folder(index: str, tmp_path: Path) -> None:
    found = parse_pip(f":env:.find-links='{tmp_path}'\n")
    assert found.wheels is None
    assert choose_torch("cpu", found, f"{index}/cpu").is_cpu_build
    (tmp_path / "numpy-2.0.whl").touch()
    assert choose_torch("cpu", parse_pip(f":env:.find-links='{tmp_path}'\n"), f"{index}/cpu").index_url == f"{index}/cpu"
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl").touch()
    chosen = choose_torch("cpu", parse_pip(f":env:.find-links='{tmp_path}'\n"), f"{index}/cpu")
    assert (chosen.index_url, chosen.is_cpu_build) == ("", True)


def test_the_output_says_before_the_build_what_it_takes_and_where(engine: _Engine) -> None:
    engine.install()
    said = engine.build(TORCH_INDEX="https://torch.example.com/cpu").stdout
    assert "torch comes from https://torch.example.com/cpu" in said
    assert "8 GB of disk, for an image of 2 GB" in said
    assert f"it is kept in {engine.folder}, where " in said
    said = engine.build().stdout  # the index for processors does not answer
    assert "torch is the CUDA build of pip's index, as https://download.pytorch.org/whl/cpu does not answer" in said
    assert "20 GB of disk, for an image of 6.4 GB" in said


def test_an_engines_options_are_in_the_command_that_tests_the_image(engine: _Engine) -> None:
    engine.install("podman")
    said = engine.build(ENGINE="podman --runtime runc").stdout
    assert f"image: test it with: podman --runtime runc run --rm {' '.join(podman_limits())} --shm-size" in said


def test_the_image_is_built_with_the_users_name_base_and_index(engine: _Engine) -> None:
    engine.install()
    done = engine.build(IMAGE="registry.example.com/me/iddpm:7", BASE_IMAGE="debian-python:3", TORCH_INDEX="https://torch.example.com")
    assert done.returncode == 0, done.stderr
    words, _ = engine.call()
    assert {"BASE_IMAGE=debian-python:3", "TORCH_INDEX=https://torch.example.com", "registry.example.com/me/iddpm:7"} <= set(words)


def test_a_mirrors_password_is_in_a_file_of_ours_for_the_time_of_the_build_and_on_no_command_line(engine: _Engine) -> None:
    engine.install()
    done = engine.build(PIP_INDEX_URL="https://me:hunter2@mirror.example.com/simple")
    assert done.returncode == 0, done.stderr
    words, secrets = engine.call()
    ((path, (text, mode)),) = secrets.items()
    assert "index-url = https://me:hunter2@mirror.example.com/simple" in text
    assert mode == "0o600"
    assert not Path(path).exists()
    assert "hunter2" not in " ".join(words) + done.stdout + done.stderr
    assert "TORCH_INDEX=" in words  # the mirror is where packages come from, torch too


def test_certificates_and_a_directory_of_wheels_go_along(engine: _Engine, tmp_path: Path) -> None:
    engine.install()
    certificates, wheels = tmp_path / "ca.pem", tmp_path / "wheels"
    certificates.write_bytes(Path(certifi.where()).read_bytes())
    wheels.mkdir()
    (wheels / "numpy-2.0.whl").touch()
    done = engine.build(PIP_CERT=str(certificates), PIP_FIND_LINKS=str(wheels))
    assert done.returncode == 0, done.stderr
    words, secrets = engine.call()
    assert f"wheels={wheels}" in words
    assert f"id=pip-ca.pem,src={certificates}" in words
    assert any("cert = /run/secrets/pip-ca.pem" in text for text, _ in secrets.values())


def test_podman_is_used_if_there_is_no_docker_and_has_limits_that_it_can_set(engine: _Engine) -> None:
    engine.install("podman")
    assert engine.build().returncode == 0
    words, _ = engine.call()
    limits = dict(word.split("=") for word in words if word.startswith(("nofile", "nproc")))
    assert set(limits) == {"nofile", "nproc"}
    for name, limit in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        soft, hard = map(int, limits[name].split(":"))
        largest = int(Path("/proc/sys/kernel/pid_max").read_text()) if name == "nproc" else 1 << 20
        assert 0 < soft <= hard <= largest
        own = resource.getrlimit(limit)[1]
        assert own == resource.RLIM_INFINITY or hard <= own


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "neither docker nor podman is installed; install one"),
        ({"ENGINE": "buildah"}, "buildah is not installed"),
        ({"TARGET": "tpu"}, "TARGET 'tpu' is none of cpu, gpu"),
        ({"IMAGE": "iddpm:latest"}, "IMAGE: 'iddpm:latest' can change"),
        ({"IMAGE": "not an image"}, "IMAGE: 'not an image' is not an image reference"),
        ({"TORCH_INDEX": "https://me:not-to-be-shown@mirror.example.com/cpu"}, "TORCH_INDEX contains a password"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(engine: _Engine, environment: dict[str, str], said: str) -> None:
    done = engine.build(**environment)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"image: {said}")
    assert "not-to-be-shown" not in line


def test_an_engine_that_does_not_answer_has_another_error_than_a_missing_one(engine: _Engine) -> None:
    engine.install(answers=False)
    done = engine.build()
    assert done.returncode == 1
    assert done.stderr == "image: docker does not answer (Cannot connect to the daemon); is its service running, and may you use it?\n"


def test_a_failed_build_fails(engine: _Engine) -> None:
    engine.install(code=3)
    done = engine.build()
    assert done.returncode == 1
    assert "docker could not build iddpm-pipelines:0.1.0" in done.stderr


def test_a_build_that_was_told_to_end_fails_also_where_podman_says_that_all_is_well(engine: _Engine) -> None:
    """Podman 4.3 ends with the exit code 0 on SIGTERM; an image of that name may be there from before."""
    engine.install("podman", finishes=False)
    done = engine.build()
    assert done.returncode == 1
    assert "podman could not build iddpm-pipelines:0.1.0" in done.stderr
    assert "built" not in done.stdout.splitlines()[-1]


def test_pips_environment_comes_before_its_install_section_and_that_before_global() -> None:
    pip = parse_pip(":env:.index-url='https://a'\ninstall.index-url='https://b'\nglobal.index-url='https://c'\nglobal.timeout='9'\n")
    assert pip.options == {"index-url": "https://a", "timeout": "9"}
    assert parse_pip("global.index-url='https://c'\ninstall.index-url='https://b'\n").options == {"index-url": "https://b"}
    assert parse_pip("list.index-url='https://other'\n").options == {}
