"""The tutorial notebook runs, and the site builds with every link leading somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[3]
NOTEBOOK = ROOT / "docs" / "tutorials" / "first-model.ipynb"


@pytest.mark.slow
def test_the_tutorial_runs_and_its_later_model_is_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TMPDIR": tmp_path, "IDDPM_HOME": tmp_path, "IPYTHONDIR": tmp_path, "MPLBACKEND": "agg"}.items():
        monkeypatch.setenv(name, str(value))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:  # a quarter of the updates, at which its three checkpoints differ as much
        cell.source = re.sub(r"\b(600|400|200)\b", lambda steps: str(int(steps[1]) // 4), cell.source)
    where = {"metadata": {"path": str(ROOT)}}
    # A busy machine takes more than the client's own minute to start a kernel, and more than four seconds to hand over what a cell printed.
    NotebookClient(notebook, timeout=1500, startup_timeout=600, iopub_timeout=120, kernel_name="python3", resources=where).execute()
    comparison = "".join(output.get("text", "") for output in notebook.cells[-2].outputs)
    assert re.search(r"step 50 .*: worse", comparison), comparison
    assert len([output for output in notebook.cells[-2].outputs if "image/png" in output.get("data", {})]) == 1


@pytest.mark.slow
def test_the_site_builds_and_no_link_of_it_is_broken(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    commands = (tmp_path / "site" / "reference" / "commands" / "index.html").read_text()
    assert "iddpm ablate" in commands
    assert "make_beta_schedule" not in commands
    assert "q_posterior" in (tmp_path / "site" / "reference" / "training" / "diffusion" / "index.html").read_text()
