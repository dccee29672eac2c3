"""The Containerfile keeps our rules; `make image-test` proves that it builds and runs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from components.container import self_test as selftest
from components.container.image import VERSION, image_from

_ROOT = Path(__file__).resolve().parents[3]
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text())


def _instructions() -> list[tuple[str, str]]:
    """(keyword, the rest) of each instruction, its lines joined."""
    lines = [line for line in (_ROOT / "components" / "Containerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def _stages() -> dict[str, list[tuple[str, str]]]:
    stages: dict[str, list[tuple[str, str]]] = {}
    for keyword, rest in _instructions():
        if keyword == "FROM":
            stages[rest.split(" AS ")[1]] = []
        if stages:
            stages[list(stages)[-1]].append((keyword, rest))
    return stages


def _default(argument: str) -> str:
    (default,) = {rest.split("=", 1)[1] for keyword, rest in _instructions() if keyword == "ARG" and rest.split("=")[0] == argument}
    return default


def _last_stage() -> list[tuple[str, str]]:
    return list(_stages().values())[-1]


def test_the_base_has_an_exact_version_and_no_registrys_name() -> None:
    base = image_from(_default("BASE_IMAGE"))
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base)


def test_every_stage_is_built_on_the_base_or_on_nothing() -> None:
    known = {"scratch", "${BASE_IMAGE}", "${TARGET}-system"}
    for stage, instructions in _stages().items():
        assert instructions[0][1].split(" AS ")[0] in known
        known.add(stage)


def test_cpu_and_gpu_are_targets_and_cpu_is_the_default() -> None:
    assert {"cpu-system", "gpu-system"} <= set(_stages())
    assert _default("TARGET") == "cpu"


def test_the_image_runs_as_a_number_of_group_0_and_says_so_last() -> None:
    users = [rest for keyword, rest in _last_stage() if keyword == "USER"]
    assert users == ["10001:0"]
    assert "--uid 10001 --gid 0" in " ".join(rest for _, rest in _stages()["cpu-system"])


def test_the_last_stage_installs_nothing_and_checks_the_packages_names() -> None:
    runs = [rest for keyword, rest in _last_stage() if keyword == "RUN"]
    assert runs == ['["python", "-m", "components.container.self_test", "names"]']
    assert set(selftest.PACKAGES) == set(_PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert _PROJECT["project"]["name"] == selftest.DISTRIBUTION


def test_the_layer_that_changes_least_is_the_first_and_our_source_the_last() -> None:
    copies = [rest for keyword, rest in _last_stage() if keyword == "COPY"]
    assert [re.findall(r"--from=(\w+)", copy)[0] for copy in copies] == ["torch", "dependencies", "project"]
    source = [stage for stage, instructions in _stages().items() if ("COPY", ". .") in instructions]
    assert source == ["project"]
    assert "project" not in {instructions[0][1].split()[0] for instructions in _stages().values()}


def _installs() -> list[tuple[str, str]]:
    return [
        (stage, rest)
        for stage, instructions in _stages().items()
        for keyword, rest in instructions
        if keyword == "RUN" and re.search(r"\$?pip .*install|pip install|pip wheel", rest)
    ]


def test_every_install_keeps_to_the_constraints_or_asks_no_index() -> None:
    installs = _installs()
    assert [stage for stage, _ in installs] == ["pip", "torch", "dependencies", "project"]
    for _, command in installs:
        assert "--constraint constraints.txt" in command or "--no-index" in command
        assert not re.search(r"(^|\s)(-e|--editable)\s", command)


def test_pip_is_configured_by_secrets_where_it_asks_an_index() -> None:
    for _, command in _installs():
        asks = "--no-index" not in command
        assert ("--mount=type=secret,id=pip.conf" in command) == asks
    text = " ".join(rest for keyword, rest in _instructions() if keyword != "RUN")
    assert not re.search(r"PIP_(EXTRA_)?INDEX_URL|https?://", text)


def test_kfp_comes_without_its_dependencies() -> None:
    assert any("--no-deps kfp" in command for _, command in _installs())
    image = [*_PROJECT["project"]["dependencies"], *_PROJECT["project"]["optional-dependencies"]["server"]]
    assert not [requirement for requirement in image if requirement.startswith("kfp")]


def test_the_label_has_the_release_that_pipelines_ask_for() -> None:
    assert _default("VERSION") == VERSION == _PROJECT["project"]["version"]


def test_all_that_the_image_installs_is_pinned() -> None:
    pinned = {re.split(r"[=<>]", line)[0].lower() for line in (_ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"}
    wanted = [
        *_PROJECT["project"]["dependencies"],
        *_PROJECT["project"]["optional-dependencies"]["server"],
        *_PROJECT["build-system"]["requires"],
    ]
    names = {re.split(r"[\[=<>]", requirement)[0].lower() for requirement in wanted}
    assert {name.replace("_", "-") for name in names} - {name.replace("_", "-") for name in pinned} == set()


@pytest.mark.parametrize("name", [".git", ".venv", ".iddpm", "tests", "k8s", ".env", "secrets.yaml"])
def test_the_builder_gets_the_listed_files_and_nothing_else(name: str) -> None:
    rules = [line for line in (_ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    sent = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert sent == {*selftest.PACKAGES, "pyproject.toml", "constraints.txt", "README.md"}
    assert name not in sent
