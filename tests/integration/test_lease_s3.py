"""The lease of a run's directory in a real S3, on whose conditional writes it relies."""

from __future__ import annotations

import functools
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from components.launch.lease import LeaseTimes, leased, read_lease
from components.steps import train as train_step
from components.steps.runs import run_files
from training.config.presets import preset
from training.data.splits import prepare_experiment
from training.distributed.signals import StopFlag

_FAST = LeaseTimes(renew=0.1, poll=0.05)


def test_of_trainings_that_start_at_once_one_at_a_time_has_the_lease(bucket_uri: str) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        with leased(bucket_uri, "", StopFlag(), times=_FAST):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.3)
            inside.remove(number)

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(work, range(5)))
    assert most == [1] * 5
    number, lease = read_lease(f"{bucket_uri}/lease")
    assert (number, lease is not None and lease.is_released) == (5, True)


@pytest.mark.slow
def test_of_two_starts_of_a_run_one_trains_and_the_other_waits_and_finds_it_trained(
    bucket_uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_step, "leased", functools.partial(leased, times=_FAST))
    experiment = preset("digits-tiny-hybrid-cosine", ["optim.num_steps=2"])
    arguments = {
        "experiment": experiment.to_json(),
        "data_uri": prepare_experiment(experiment, f"{bucket_uri}/data"),
        "reference_uri": "",
        "storage_root_uri": bucket_uri,
        "tracking_experiment": "lease",
        "resources": {},
    }
    run_uri, said = run_files(arguments)[1], ""
    with ThreadPoolExecutor(2) as pool:
        with leased(run_uri, "", StopFlag(), times=_FAST):  # both wait for it, so that they begin at the same moment
            starts = [pool.submit(train_step.train_run, **arguments, ray_address=None) for _ in range(2)]
            deadline = time.monotonic() + 60
            while said.count("waiting for its end") < len(starts):
                assert time.monotonic() < deadline
                time.sleep(0.05)
                said += capsys.readouterr().out
        assert [start.result() for start in starts] == [run_uri] * 2
    said += capsys.readouterr().out
    assert (said.count("followed at"), said.count("is already trained to step 2")) == (1, 1)
