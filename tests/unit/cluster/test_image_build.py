"""`make image` with docker or podman, and its error messages; the engine is a script that records its call."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.container.build import ROOT, TORCH_CPU_INDEX, parse_pip

_ENGINE = """#!{python}
import json, os, pathlib, sys
if sys.argv[1] == "info" and {answers}:
    sys.exit(0)
if sys.argv[1] == "info":
    sys.exit("Cannot connect to the daemon")
if sys.argv[1] == "image":
    print(2100000000)
    sys.exit(0)
secrets = [word.split("src=")[1] for word in sys.argv if "src=" in word]
texts = {{path: [pathlib.Path(path).read_text(), oct(os.stat(path).st_mode & 0o777)] for path in secrets}}
pathlib.Path({record!r}).write_text(json.dumps([sys.argv[1:], texts]))
sys.exit({code})
"""


class _Engine:
    """A stand-in for docker in a folder of its own, which is the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = folder / "record.json"

    def install(self, name: str = "docker", *, answers: bool = True, code: int = 0) -> None:
        path = self.folder / name
        path.write_text(_ENGINE.format(python=sys.executable, answers=answers, record=str(self.record), code=code))
        path.chmod(0o755)

    def build(self, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        clean |= {"PATH": str(self.folder), "PIP_CONFIG_FILE": os.devnull}
        return subprocess.run(
            [sys.executable, "-m", "components.container.build"],
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
    assert "docker run --rm iddpm-pipelines:0.1.0 python -m components.container.self_test" in done.stdout
    words, _ = engine.call()
    assert words[words.index("--tag") + 1] == "iddpm-pipelines:0.1.0"


def test_torch_for_the_processor_comes_from_its_own_index_and_for_a_card_from_pips(engine: _Engine) -> None:
    engine.install()
    assert engine.build().returncode == 0
    assert f"TORCH_INDEX={TORCH_CPU_INDEX}" in engine.call()[0]
    assert engine.build(TARGET="gpu").returncode == 0
    assert {"TORCH_INDEX=", "TARGET=gpu"} <= set(engine.call()[0])


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
    certificates.write_text("certificate")
    wheels.mkdir()
    done = engine.build(PIP_CERT=str(certificates), PIP_FIND_LINKS=str(wheels))
    assert done.returncode == 0, done.stderr
    words, secrets = engine.call()
    assert f"wheels={wheels}" in words
    assert f"id=pip-ca.pem,src={certificates}" in words
    assert any("cert = /run/secrets/pip-ca.pem" in text for text, _ in secrets.values())


def test_podman_is_used_if_there_is_no_docker_and_has_this_users_limits(engine: _Engine) -> None:
    engine.install("podman")
    assert engine.build().returncode == 0
    words, _ = engine.call()
    assert [word.split("=")[0] for word in words if word.startswith(("nofile", "nproc"))] == ["nofile", "nproc"]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "neither docker nor podman is installed; install one"),
        ({"ENGINE": "buildah"}, "buildah is not installed"),
        ({"TARGET": "tpu"}, "TARGET 'tpu' is none of cpu, gpu"),
        ({"IMAGE": "iddpm:latest"}, "IMAGE: 'iddpm:latest' can change"),
        ({"IMAGE": "not an image"}, "IMAGE: 'not an image' is not an image reference"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(engine: _Engine, environment: dict[str, str], said: str) -> None:
    done = engine.build(**environment)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"image: {said}")


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


def test_pips_environment_comes_before_its_install_section_and_that_before_global() -> None:
    pip = parse_pip(":env:.index-url='https://a'\ninstall.index-url='https://b'\nglobal.index-url='https://c'\nglobal.timeout='9'\n")
    assert pip.options == {"index-url": "https://a", "timeout": "9"}
    assert parse_pip("global.index-url='https://c'\ninstall.index-url='https://b'\n").options == {"index-url": "https://b"}
    assert parse_pip("list.index-url='https://other'\n").options == {}
