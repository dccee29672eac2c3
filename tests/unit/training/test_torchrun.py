"""The loop with torch alone: no other package installed, in one process and under torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

from training.launch.torchrun import main

SMALL = [
    *("--preset", "digits-hybrid-cosine", "--steps", "3", "--warmup", "1"),
    *("--set", "optim.global_batch_size=4", "--set", "model.channel_mult=1,1", "--set", "diffusion.vlb_weight=0.01"),
]

# All that we depend on but torch and numpy; torch imports numpy itself where it finds it, and the loop does not.
ALONE = textwrap.dedent(
    """
    import sys

    class Absent:
        names = {"pydantic", "jaxtyping", "ray", "mlflow", "boto3", "pyarrow", "rich", "typer", "kfp", "cv2", "sklearn"}

        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in self.names:
                raise ModuleNotFoundError(f"{name} is not installed", name=name)

    import torch._dynamo  # which looks around for other packages

    sys.meta_path.insert(0, Absent())
    for name in [name for name in sys.modules if name.partition(".")[0] in Absent.names]:
        del sys.modules[name]
    from training.launch.torchrun import main

    raise SystemExit(main(sys.argv[1:]))
    """
)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=200, check=False)


@pytest.mark.slow
def test_the_loop_runs_where_torch_is_all_that_is_installed() -> None:
    done = run([sys.executable, "-c", ALONE, *SMALL])
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["steps"] == 3
    assert report["images_per_second"] > 0


@pytest.mark.slow
def test_torchrun_trains_what_one_process_trains(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SMALL) == 0
    alone = json.loads(capsys.readouterr().out)
    two = run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "training.launch.torchrun", *SMALL]
    )
    assert two.returncode == 0, two.stderr[-1000:]
    together = json.loads(two.stdout.strip().splitlines()[-1])
    assert together["world_size"] == 2
    # Two workers add in another order, and Adam divides a gradient by its size: where gradients are nothing but rounding, weights differ by
    # up to three steps of 1e-3, the learning rate. The loss is near 1, and most gradients are more.
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-3)


def test_as_many_updates_are_timed_as_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--set", "optim.num_steps=2", "--gradient-checkpointing"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["steps"], report["last_step"]) == (3, 4), "one update more, to warm up"


@pytest.mark.parametrize("words", [("--steps", "0"), ("--warmup", "-1")])
def test_no_steps_to_time_is_an_error(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*SMALL, *words])
    assert "--steps must be at least 1" in capsys.readouterr().err


def test_a_wrong_override_is_one_line_and_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--preset", "digits-hybrid-cosine", "--set", "model.dropout=2"]) == 2
    assert capsys.readouterr().err.strip() == "error: model.dropout: must be in [0, 1), got 2.0"


def test_a_training_that_diverges_is_one_line_and_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--steps", "12", "--warmup", "0", "--set", "optim.learning_rate=1e30"]) == 2
    error = "the gradient was not finite for 10 updates in a row before step 12; try a lower optim.learning_rate or optim.grad_clip_norm=1"
    assert capsys.readouterr().err.strip() == f"error: {error}"
