"""`make kind`: the guide's commands, and clear words where a tool is missing. Docker is not needed here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "k8s" / "kind.sh"
# What makes the script go on after an interruption, or keeps it away from other clusters; a person does without.
ONLY_HERE = (
    "kind get clusters",
    "kind export kubeconfig",
    "kind delete cluster",
    "helm status",
    "docker i",
    "kubectl -n * get secret",
    "kubectl get namespace",
    "kubectl wait --for=condition=Ready node",
)


def _commands(text: str) -> list[str]:
    """The commands of the tools, one a line, with lines that go on joined and namespaces' names left out."""
    joined = re.sub(r"\\\n\s*|(\|\|)\n\s*", r"\1 ", text).replace("ENGINE=docker make", "make")
    pieces = [piece.strip() for line in joined.splitlines() for piece in re.split(r"\|\||&&|\$\((?=kubectl)|^if |; then", line)]
    found = [re.sub(r"\s+#.*", "", piece) for piece in pieces if re.match(r"(kubectl|helm|kind|\.venv/bin/iddpm|make) ", piece)]
    return [_plain(each) for each in found]


def _plain(command: str) -> str:
    command = re.sub(r" >/dev/null 2>&1| 2>/dev/null.*| --overwrite| --force-update| IMAGE=\S+", "", command)
    return command.replace('"$image"', "iddpm-pipelines:0.1.0").strip()


def _is_only_here(command: str) -> bool:
    return any(re.match(re.escape(each).replace(r"\*", r"\S+"), command) for each in ONLY_HERE)


def test_the_script_is_bash() -> None:
    assert subprocess.run(["bash", "-n", SCRIPT], capture_output=True, check=False).returncode == 0


def test_every_command_of_it_is_in_the_guide() -> None:
    guide = _commands((ROOT / "k8s" / "README.md").read_text())
    commands = [command for command in _commands(SCRIPT.read_text().partition("cat <<END")[0]) if not _is_only_here(command)]
    assert len(commands) > 15
    assert [command for command in commands if command not in guide] == []


def test_a_cluster_is_found_among_others_however_slowly_kind_lists_them() -> None:
    """With `pipefail`, a reader that leaves early makes a failure of kind's next line."""
    questions = re.findall(r"kind get clusters [^;\n]*iddpm(?: >/dev/null)?", SCRIPT.read_text())
    assert len(questions) == 2
    for question in questions:
        script = f"set -euo pipefail; kind() {{ /bin/sh -c 'echo iddpm; sleep 0.2; echo other'; }}; {question}"
        assert subprocess.run(["bash", "-c", script], check=False).returncode == 0


def test_it_names_every_tool_that_is_missing_and_touches_nothing(tmp_path: Path) -> None:
    (tmp_path / "k8s").mkdir()
    shutil.copy(SCRIPT, tmp_path / "k8s")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "mkdir", "date", "git", "openssl"):
        (tools / name).symlink_to(shutil.which(name) or f"/usr/bin/{name}")
    done = subprocess.run([tmp_path / "k8s" / "kind.sh"], env={"PATH": str(tools)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("kind: not installed: docker kind kubectl helm (")
    assert done.stdout == ""


def _checkout(tmp_path: Path, **answers: str) -> dict[str, str]:
    """Make a checkout with the script, and tools that answer with lines of bash; return the environment."""
    (tmp_path / "k8s").mkdir()
    shutil.copy(SCRIPT, tmp_path / "k8s")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    tools = tmp_path / "bin"
    tools.mkdir()
    for path, answer in [(tools / name, answer) for name, answer in answers.items()] + [(tmp_path / ".venv/bin/iddpm", "")]:
        path.write_text(f"#!/bin/bash\n{answer}\n", encoding="utf-8")
        path.chmod(0o755)
    return {"PATH": f"{tools}:{os.environ['PATH']}"}


def test_half_a_cluster_of_an_interruption_is_told_with_its_remedy(tmp_path: Path) -> None:
    environment = _checkout(
        tmp_path,
        docker='case "$*" in *NCPU*) echo 2;; *MemTotal*) echo 8589934592;; esac',
        kind='if [ "$1" = get ]; then echo iddpm; fi',
        kubectl='case "$*" in *condition=Ready*) exit 1;; *) echo "kubectl went on: $*";; esac',
        helm='echo "helm went on"',
    )
    done = subprocess.run([tmp_path / "k8s" / "kind.sh"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "went on" not in done.stdout
    cores, memory, end = done.stderr.splitlines()
    assert cores.startswith("kind: docker has 2 cores; 4 are needed")
    assert memory.startswith("kind: docker has 8 GiB of memory; 12 are needed")
    assert end.startswith("kind: the cluster does not get ready;")
    assert "kind delete cluster --name iddpm" in end


@pytest.mark.parametrize(
    ("given", "is_there", "built"), [("", True, True), ("", False, True), ("mine:1", True, False), ("mine:1", False, True)]
)
def test_only_an_image_that_is_named_and_there_is_not_built(tmp_path: Path, given: str, is_there: bool, built: bool) -> None:
    environment = _checkout(
        tmp_path,
        docker=f'case "$*" in *NCPU*) echo 8;; *MemTotal*) echo 68719476736;; "image inspect"*) exit {int(not is_there)};; esac',
        kind='case "$1" in get) echo iddpm;; load) exit 1;; esac',
        kubectl="",
        helm="",
        make='echo "made: $*"',
    )
    environment |= {"IDDPM_IMAGE": given} if given else {}
    done = subprocess.run([tmp_path / "k8s" / "kind.sh"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1  # at the load, the command after it
    assert (f"made: image IMAGE={given or 'iddpm-pipelines:0.1.0'}" in done.stdout) == built
