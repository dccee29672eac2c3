"""`iddpm images`: all images that a site without internet must copy."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.doctor.manifests import images_of, read_manifests
from training.config.errors import UserError

_ROOT = Path(__file__).parents[3]
_KFP = """
kind: Deployment
spec:
  template:
    spec:
      initContainers: [{name: init, image: alpine:3}]
      containers:
        - name: workflow-controller
          image: example.com/argo:v4
          args: [--configmap, x, --executor-image, example.com/argoexec:v4]
          env: [{name: V2_LAUNCHER_IMAGE, value: "example.com/launcher:2"}, {name: OTHER, value: x}]
"""


def test_the_images_that_controllers_start_are_listed_too(tmp_path: Path) -> None:
    (tmp_path / "kfp.yaml").write_text(_KFP)
    expected = {"alpine:3", "example.com/argo:v4", "example.com/argoexec:v4", "example.com/launcher:2"}
    assert images_of(read_manifests(str(tmp_path / "kfp.yaml"))) == expected


def test_the_command_lists_the_images_of_an_overlay() -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "pipelines.cli.main", "images", "k8s/overlays/kind"]
    said = subprocess.run(command, cwd=_ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True).stdout
    names = [line.split(":")[0] for line in said.splitlines()]
    assert names == ["chrislusf/seaweedfs", "iddpm-pipelines", "postgres"]


def test_a_file_that_is_not_there_is_one_line() -> None:
    with pytest.raises(UserError, match="can't be read"):
        read_manifests("no-such-file.yaml")


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(b"\x7fELF\xd0\x00")
    with pytest.raises(UserError, match="program can't be read \\(it is not text\\)"):
        read_manifests(str(tmp_path / "program"))


@pytest.mark.parametrize("text", ["", "---\n", "Error: repo kuberay not found\n- 1\n", "helm: command not found"])
def test_a_pipe_without_manifests_is_an_error_and_not_a_list_of_no_images(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    with pytest.raises(UserError, match=r"^standard input (has no manifests; did the command that writes them fail|is not YAML)"):
        read_manifests("-")
