"""The tutorial notebook runs, and every link leads somewhere, in the repository and on the site."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
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


def _headings(text: str) -> set[str]:
    """The anchors that a forge gives to the headings of a Markdown file."""
    titles = re.findall(r"^#+ +(.*?) *$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _links() -> list[tuple[str, str]]:
    """Each link of a tracked Markdown file to another file or heading of the repository."""
    tracked = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    found = [(name, link) for name in tracked for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text())]
    return [(name, link) for name, link in found if not re.match(r"[a-z]+:", link)]


def test_each_link_within_the_repository_leads_to_a_file_and_a_heading() -> None:
    links = _links()
    assert len(links) > 50
    for name, link in links:
        target, _, anchor = link.partition("#")
        path = (ROOT / name).parent / target if target else ROOT / name
        assert path.exists(), f"{name} links to {link}"
        assert not anchor or anchor in _headings(path.read_text()), f"{name} links to {link}"


def test_the_claims_that_results_counts_are_those_of_its_table() -> None:
    text = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    table = text.partition("## The paper's claims, on digits, with five seeds\n")[2].partition("\n\n![")[0]
    found = Counter(row.split(" | ")[2] for row in table.splitlines() if row.startswith("| `"))
    agreed, other, open_ = (found[verdict] for verdict in ("as the paper says", "otherwise than the paper says", "not decided here"))
    assert agreed + other + open_ + found["no experiment of this size"] == found.total() == 40
    for counts in (
        f"Of {agreed + other + open_} claims, ",
        f"{agreed} came out as the paper says and {other} otherwise; {open_} are not decided",
    ):
        assert text.count(counts) == 2, counts  # at the top of the page, and above the table


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
    site = tmp_path / "site"
    assert not [*site.rglob("*.py*")]
    commands = (site / "reference" / "commands.html").read_text()
    assert "iddpm ablate" in commands
    assert "--no-wait" in commands
    assert "make_beta_schedule" not in commands
    assert "q_posterior" in (site / "reference" / "training" / "diffusion.html").read_text()
    for page in {*site.rglob("*.html")} - {site / "404.html"}:  # a server shows that one at any address
        for link in re.findall(r'(?:href|src)="([^"#:?]+)[#?"]', page.read_text()):
            assert (page.parent / link).is_file(), f"{page} links to {link}, which no browser opens without a server"
