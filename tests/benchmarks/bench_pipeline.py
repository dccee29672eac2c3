"""The cost of running a pipeline on this machine, beside the work of its steps: pipelines of steps that do nothing."""

# No annotations from the future: kfp reads them as they are.
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kfp import dsl
from measuring import Measured, Run, of, seconds_of

from pipelines.local.run import run_pipeline
from pipelines.services.services import Services

_MANY = 5


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def add_one(number: int) -> int:
    return number + 1


def chain(length: int) -> Any:
    """A pipeline of that many steps, each of which waits for the one before."""

    @dsl.pipeline(name=f"benchmark-{length}-steps")
    def pipeline(number: int = 0) -> int:
        last = add_one(number=number)
        for _ in range(length - 1):
            last = add_one(number=last.output)
        return last.output

    return pipeline


def measure(run: Run) -> Iterator[tuple[str, Measured]]:
    """The rows of this group; the functions themselves take microseconds, so that all that is measured is overhead."""
    with tempfile.TemporaryDirectory(prefix="iddpm-bench-") as home:
        services = Services(home=Path(home), s3_endpoint="", mlflow_url="", env={})

        def seconds(length: int) -> float:
            return seconds_of(lambda: run_pipeline(chain(length), {}, services, show=lambda line: None), clock="wall")

        if not run.quick:
            seconds(1)  # what is imported here and compiled to byte code is imported once
        times = [(seconds(1), seconds(_MANY)) for _ in range(run.rounds(3))]
    yield "step", of([(many - one) / (_MANY - 1) for one, many in times], f"a pipeline of {_MANY} steps against one of 1")
    yield "run", of([one + 2 * (many - one) / (_MANY - 1) for one, many in times])
