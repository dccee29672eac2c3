"""The local runner, with pipelines small enough to see every way in which a run can end."""

import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import psutil
import pytest
from PIL import Image

from evaluation.ablations.definitions.request import AblationRequest
from pipelines.cli.paper.reproduce import _show
from pipelines.cli.runs.local import _own_images
from pipelines.local.images import add_held_out, held_out, preparation, require_sources
from pipelines.local.run import PipelineError, run_pipeline
from pipelines.local.training import _progress, train_here
from training.config.errors import UserError

_TOY = Path(__file__).with_name("toy_run.py")


@pytest.fixture(scope="module")
def toy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("toy_run", _TOY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(toy: ModuleType, name: str, arguments: dict[str, object], home: Path) -> tuple[dict[str, object], list[str]]:
    lines: list[str] = []
    outputs = run_pipeline(getattr(toy, name), arguments, toy.services(home, "a test"), show=lines.append)
    return outputs, lines


def test_show_progress_lines_are_shown_and_each_says_which_stage_of_how_many(toy: ModuleType, tmp_path: Path) -> None:
    outputs, lines = _run(toy, "toy_sum", {"first": 5}, tmp_path)
    assert outputs == {"Output": 14}
    assert [line for line in lines if "done in" not in line] == ["[1/2 sum] 5 + 2 in a test", "[2/2 double] twice 7"]
    (log,) = (tmp_path / "logs").iterdir()
    assert "chatter that belongs in the log" in log.read_text()


def test_lines_of_components_that_run_at_once_keep_their_stage_and_iteration(toy: ModuleType, tmp_path: Path) -> None:
    _, lines = _run(toy, "toy_loop", {}, tmp_path)
    assert sorted(line for line in lines if "done in" not in line) == [f"[1/1 add {n}] {n} + {n} in a test" for n in (1, 2, 3)]


def test_a_failing_component_is_named_with_its_error_and_is_not_tried_again(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(
        PipelineError, match="toy-failure failed in refuse: ValueError: 2 is not a number that this component takes"
    ) as caught:
        _run(toy, "toy_failure", {}, tmp_path)
    assert caught.value.log_path is not None
    log = caught.value.log_path.read_text()
    assert "Traceback" in log
    assert log.count("Executing task 'refuse'") == 1
    assert "\n" not in str(caught.value)


def test_the_exit_task_knows_which_step_failed_and_why(toy: ModuleType, tmp_path: Path) -> None:
    """KFP tells it only that something failed, but the webhook and MLflow name the step and its error."""
    lines: list[str] = []
    with pytest.raises(PipelineError):
        run_pipeline(toy.toy_exit, {"is_good": False}, toy.services(tmp_path, ""), show=lines.append)
    assert any("failed: {'refuse': 'ValueError: 3 is not a number that this component takes'}" in line for line in lines), lines
    _, lines = _run(toy, "toy_exit", {"is_good": True}, tmp_path)
    assert any("finished: {}" in line for line in lines), lines


def test_an_unknown_parameter_is_refused_before_anything_runs(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no parameter 'third'; it has first, second"):
        _run(toy, "toy_sum", {"third": 3}, tmp_path)


def test_a_value_that_kfp_would_rewrite_in_silence_is_refused(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="started_path"):
        _run(toy, "toy_work", {"started_path": "data/python3/x"}, tmp_path)


def _start(tmp_path: Path) -> tuple["subprocess.Popen[str]", int]:
    started_path = tmp_path / "started"
    started_path.unlink(missing_ok=True)
    command = [sys.executable, str(_TOY), "toy", str(tmp_path / "home"), "toy_work", json.dumps({"started_path": str(started_path)})]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=_TOY.parents[3])
    deadline = time.monotonic() + 300
    while not (started_path.exists() and started_path.read_text()):
        assert time.monotonic() < deadline, "the component did not start"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    return process, int(started_path.read_text())


def _left(tmp_path: Path) -> list[psutil.Process]:
    mark = f"{(tmp_path / 'home').resolve()}:"
    left = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("IDDPM_LOCAL_RUN", "").startswith(mark) and process.status() != psutil.STATUS_ZOMBIE:
                left.append(process)
        except psutil.Error:
            continue
    return left


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_has_an_interrupts_exit_status_and_leaves_no_process_behind(tmp_path: Path, how: signal.Signals) -> None:
    process, helper = _start(tmp_path)
    assert psutil.pid_exists(helper)
    process.send_signal(how)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "\nerror: stopped; the same command goes on with what is left (the whole log: " in printed
    assert _left(tmp_path) == []


@pytest.mark.slow
def test_a_run_is_refused_while_another_one_holds_the_state_folder(toy: ModuleType, tmp_path: Path) -> None:
    process, _ = _start(tmp_path)
    try:
        with pytest.raises(PipelineError, match=f"another run is under way \\(process {process.pid}\\)"):
            run_pipeline(toy.toy_sum, {}, toy.services(tmp_path / "home", "a test"))
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@pytest.mark.slow
def test_what_a_killed_run_leaves_is_stopped_by_the_next(toy: ModuleType, tmp_path: Path) -> None:
    process, helper = _start(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    lines: list[str] = []
    outputs = run_pipeline(toy.toy_sum, {}, toy.services(tmp_path / "home", "a test"), show=lines.append)
    assert outputs == {"Output": 6}
    assert not psutil.pid_exists(helper) or psutil.Process(helper).status() == psutil.STATUS_ZOMBIE
    assert "stopped the processes that an earlier, killed run had left" in lines


def test_a_process_that_can_not_be_killed_ends_a_run_with_an_error_that_names_it(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that hangs in the kernel can't be killed; nothing may wait for it for ever."""
    hangs = subprocess.Popen(["sleep", "600"], env={"IDDPM_LOCAL_RUN": f"{tmp_path.resolve()}:killed"})
    with monkeypatch.context() as patched:
        patched.setattr(psutil.Process, "kill", lambda self: None)
        patched.setattr("pipelines.services.daemons._KILL_SECONDS", 0.01)
        with pytest.raises(PipelineError, match=rf"cannot be stopped: processes \[{hangs.pid}\] do not end"):
            _run(toy, "toy_sum", {}, tmp_path)
    hangs.kill()
    hangs.wait()


def test_every_tenth_image_of_ones_own_is_held_out_unless_there_are_test_images(tmp_path: Path) -> None:
    for number in range(25):
        path = tmp_path / "all" / "train" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(path)
    assert held_out(str(tmp_path / "all" / "train")) == {"num_test": 2}
    (tmp_path / "all" / "train" / "0.png").write_bytes(b"no picture")
    assert held_out(str(tmp_path / "all" / "train")) == {"num_test": 2}, "a damaged image is not looked at here"
    (tmp_path / "all" / "test").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "all" / "test" / "0.png")
    assert held_out(str(tmp_path / "all")) == {}
    assert held_out("") == held_out("digits") == held_out(f"cifar10:{tmp_path}") == {}


@pytest.mark.parametrize(
    ("given", "num_test"),
    [
        ("", 2),
        ('{"on_error": "skip"}', 2),
        ('{"num_test": 5}', 5),
        ('{"num_test": 0, "background": "black"}', 0),
        ('{"labels": "none"}', 2),
    ],
)
def test_data_options_that_do_not_say_how_many_leave_the_images_held_out(tmp_path: Path, given: str, num_test: int) -> None:
    for number in range(25):
        Image.new("L", (8, 8), number).save(tmp_path / f"{number}.png")
    told = json.loads(given or "{}")
    assert add_held_out(given, str(tmp_path)) == {**told, "num_test": num_test}
    prepared = preparation(given, str(tmp_path))
    assert prepared["source_options"] == {"labels": told.get("labels", "auto"), "num_test": num_test}
    words = [f"data_options={given}"] if given else []
    assert _own_images(str(tmp_path), ["seed=3", *words]) == [
        *("seed=3", f"data_source={tmp_path}", f"data_options={json.dumps({**told, 'num_test': num_test})}")
    ]


def test_a_source_in_s3_is_left_to_the_preparation_as_this_machines_s3_may_not_run_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    require_sources(["s3://iddpm/photos", "cifar10:s3://iddpm/cifar10", "digits", ""])
    with pytest.raises(UserError, match=r"there is no source 'a\.zip'"):
        require_sources(["a.zip"])


def test_no_more_images_are_held_out_than_the_classes_allow(tmp_path: Path) -> None:
    def save(count: int, label: int) -> None:
        for number in range(count):
            path = tmp_path / f"class {label}" / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("L", (8, 8), number).save(path)

    for label in range(20):
        save(1, label)
    assert held_out(str(tmp_path)) == {}
    save(2, 0)
    assert held_out(str(tmp_path)) == held_out(tmp_path.as_uri()) == {"num_test": 1}
    save(30, 0)
    assert held_out(str(tmp_path)) == {"num_test": 4}


def test_the_command_for_a_cluster_repeats_the_table_that_was_priced(capsys: pytest.CaptureFixture[str]) -> None:
    request = AblationRequest(name="cifar10-table2", scale="paper", overrides=("evaluation.num_samples=50",), seeds=2)
    _show(request, "H100", None)
    words = shlex.split(capsys.readouterr().out.splitlines()[-1].partition("iddpm submit ablation ")[2])
    assert words == [
        *("--param", "ablation_name=cifar10-table2", "--param", "ablation_scale=paper", "--param", 'ablation_options={"seeds": 2}'),
        *("--set", "evaluation.num_samples=50", "--resources", "train=8xgpu", "--resources", "evaluate=8xgpu"),
    ]


@pytest.mark.parametrize(("name", "folder"), [("", "trainings/logs-0123456789"), ("demo", "demo")])
def test_the_report_of_a_training_is_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: str
) -> None:
    summarize = Mock(return_value="")  # a real training takes a minute: tests/integration/test_pipelines.py
    monkeypatch.setattr("pipelines.services.services.up", Mock(return_value=Mock(home=tmp_path, env={})))
    monkeypatch.setattr("pipelines.services.services.status", Mock())
    monkeypatch.setattr("pipelines.local.run.run_pipeline", Mock(return_value={"Output": "s3://iddpm/runs/logs-0123456789"}))
    monkeypatch.setattr("pipelines.local.training.summarize", summarize)
    train_here({}, name=name)
    assert summarize.call_args.args[1] == tmp_path / folder


def test_the_summary_of_a_training_leaves_out_scores_that_are_not_finite() -> None:
    history = [{"step": step, "distance_name": "FD", "scores": {"a": score}} for step, score in ((100, None), (200, 9.0), (300, 4.5))]
    assert _progress(history) == "FD 9 at step 200 -> 4.5 at step 300 (few-step scores during training)"
    assert _progress(history[:1]) == "no checkpoint has a finite score"
