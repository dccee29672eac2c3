"""The example of `pipelines.notebook`, run as it stands in its docstring against a small run."""

from __future__ import annotations

import tarfile
import textwrap
from pathlib import Path

import pytest
import torch

from pipelines import notebook


def test_every_name_is_there_and_none_is_another_packages() -> None:
    assert [
        name for name in notebook.__all__ if not getattr(notebook, name).__module__.startswith(("evaluation.", "training.", "pipelines."))
    ] == []


def test_five_lines_load_a_run_and_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDDPM_HOME", str(tmp_path))  # where no services run
    with tarfile.open(Path(__file__).parents[2] / "golden" / "earlier_run" / "run.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    (run,) = {str(path.parent) for path in tmp_path.rglob("experiment.json") if "checkpoints" not in path.parts}
    example = textwrap.dedent((notebook.__doc__ or "").partition("\n\n")[2].partition("\n\n")[0])
    assert len(example.splitlines()) == 5
    names: dict[str, object] = {}
    exec(example.replace("s3://iddpm/runs/KEY", run).replace('"cuda"', '"cpu"'), names)
    images = names["images"]
    assert isinstance(images, torch.Tensor)
    assert (images.shape, images.dtype) == ((16, 1, 8, 8), torch.uint8)
