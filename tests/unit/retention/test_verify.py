"""The check of a directory: each damaged file has its line, with what is wrong where."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.retention.collect import collect
from components.retention.survey import Policy
from components.retention.verify import verify
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.presets import preset

LINE = b'{"step": 1, "time": 5, "values": {"loss": 0.5}}\n'


def test_a_torn_line_of_the_metrics_has_its_own_number(tmp_path: Path) -> None:
    file = tmp_path / "run" / "metrics.jsonl"
    file.parent.mkdir()
    file.write_bytes(LINE + LINE[:12])
    assert verify(str(file.parent)).damaged == (
        f"{file}: line 2 is no step with its values (JSONDecodeError); remove that line, or bring the whole file back",
    )
    file.write_bytes(LINE + LINE)
    assert verify(str(file.parent)).damaged == ()


@pytest.mark.parametrize("root", ["", "/"])
def test_no_address_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    (tmp_path / "experiment.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^the address is empty or /; name the directory of a run"):
        verify(root)
    with pytest.raises(UserError, match=r"^the address of the storage root is empty or /; name the directory that contains runs/"):
        collect(root, Policy(days=30.0, grace_hours=24.0))


def test_files_of_a_hundred_thousand_brackets_are_damaged_and_hide_no_other_file(tmp_path: Path) -> None:
    files = {checkpoint.EXPERIMENT: preset("digits-tiny-hybrid-cosine").to_json().encode(), "model.pt": {"step": 1}}
    uri = checkpoint.save(str(tmp_path / "run"), 1, files)
    names = [f"{uri}/complete.json", f"{tmp_path}/data/manifest.json", f"{tmp_path}/a.json", f"{tmp_path}/run/experiment.json"]
    names += [f"{tmp_path}/run/metrics.jsonl"]
    (tmp_path / "data").mkdir()
    for name in names:
        Path(name).write_bytes(b"[" * 100_000)
    (tmp_path / "z.json").write_bytes(b"{")
    found = verify(str(tmp_path)).damaged
    assert sorted(line.partition(": ")[0] for line in found) == sorted([*names, f"{tmp_path}/z.json"])
