"""Small pipelines, and `iddpm` with one more command, which runs one of them: `python toy_run.py toy HOME NAME ARGUMENTS`."""

import json
from pathlib import Path

from kfp import dsl

from pipelines.services.services import Services


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def add(a: int, b: int) -> int:
    import os

    from training.console import say

    print("chatter that belongs in the log")
    say(f"{a} + {b} in {os.environ['TOY_PLACE']}")
    return a + b


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def double(a: int) -> int:
    print("\x1b[36m(RayTrainWorker pid=12, ip=127.0.0.1)\x1b[0m iddpm| twice", a, flush=True)
    return 2 * a


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def refuse(a: int) -> int:
    raise ValueError(f"{a} is not a number that this component takes")


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def tell(status: dsl.PipelineTaskFinalStatus) -> int:
    from components.steps.close import end_of_run
    from training.console import say

    end = end_of_run(status.state, "toy")
    say(f"{end.event}: {dict(end.errors)}")
    return 0


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def work_for_ever(started_path: str) -> int:
    import subprocess
    import time
    from pathlib import Path

    from training.console import say

    # A child in a session of its own, as Ray's may be: only its mark says that it is ours.
    helper = subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    Path(started_path).write_text(str(helper.pid))
    say("working")
    while True:
        time.sleep(0.1)


@dsl.pipeline(name="toy-sum")
def toy_sum(first: int = 1, second: int = 2) -> int:
    total = add(a=first, b=second).set_display_name("sum")
    twice = double(a=total.output)
    return twice.output


@dsl.pipeline(name="toy-failure")
def toy_failure(first: int = 1) -> int:
    total = add(a=first, b=1)
    bad = refuse(a=total.output).set_retry(3, backoff_duration="60s")
    return double(a=bad.output).output


@dsl.pipeline(name="toy-exit")
def toy_exit(is_good: bool):
    with dsl.ExitHandler(tell()), dsl.If(is_good == False):  # noqa: E712 - kfp's conditions
        refuse(a=3)


@dsl.pipeline(name="toy-loop")
def toy_loop(numbers: list = [1, 2, 3]):  # noqa: B006 - kfp's defaults are literals
    with dsl.ParallelFor(numbers) as number:
        add(a=number, b=number)


@dsl.pipeline(name="toy-work")
def toy_work(started_path: str) -> int:
    return work_for_ever(started_path=started_path).output


def services(home: Path, place: str) -> Services:
    """No services, but their place and an environment."""
    return Services(home=home, s3_endpoint="", mlflow_url="", env={"TOY_PLACE": place})


def main() -> None:
    from pipelines.cli import main as cli
    from pipelines.local.run import run_pipeline

    @cli.app.command()
    def toy(home: Path, name: str, arguments: str) -> None:
        run_pipeline(globals()[name], json.loads(arguments), services(home, "here"))

    cli.main()


if __name__ == "__main__":
    main()
