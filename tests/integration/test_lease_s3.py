"""The lease of a run's directory in a real S3, on whose conditional writes it relies."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from components.launch.lease import LeaseTimes, leased, read_lease
from training.distributed.signals import StopFlag


def test_of_trainings_that_start_at_once_one_at_a_time_has_the_lease(bucket_uri: str) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        with leased(bucket_uri, "", StopFlag(), times=LeaseTimes(renew=0.1, poll=0.05)):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.3)
            inside.remove(number)

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(work, range(5)))
    assert most == [1] * 5
    number, lease = read_lease(f"{bucket_uri}/lease")
    assert (number, lease is not None and lease.is_released) == (5, True)
