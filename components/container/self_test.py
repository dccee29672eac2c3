"""Test the image from inside: `python -m components.container.self_test [CHECK ...]`.

Each check prints one line with its findings; the exit status is 1 if one failed. It runs while the image is built
(`names`), in `make image-test`, and for an image in a registry or on a cluster.
"""

from __future__ import annotations

import getpass
import importlib
import importlib.metadata
import importlib.util
import json
import os
import pkgutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

PACKAGES = ("training", "evaluation", "components", "pipelines")
DISTRIBUTION = "iddpm-pipelines"

# KubeRay's pods call bash, ray and python; the cluster's MLflow calls mlflow; a person calls iddpm.
_COMMANDS = ("python", "python3", "ray", "mlflow", "iddpm")
_SERVER_MODULES = ("mlflow.server", "flask_wtf", "psycopg2", "boto3")
_COMPONENT = "def double(number: int) -> int:\n    return 2 * number\n"


class SelfTestError(RuntimeError):
    """A check failed; the message says what is wrong with the image or how it is run."""


def check_names() -> str:
    """Check that each of our packages comes from our distribution alone: another distribution could have packages of the same names."""
    owners = importlib.metadata.packages_distributions()
    home = Path(sysconfig.get_path("purelib"))
    for name in PACKAGES:
        if set(owners.get(name, ())) != {DISTRIBUTION}:
            raise SelfTestError(
                f"package {name} comes from {sorted(set(owners.get(name, ()))) or 'nowhere'}, not from {DISTRIBUTION} alone"
            )
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or Path(spec.origin) != home / name / "__init__.py":
            raise SelfTestError(f"package {name} is not found in {home} but as {spec}")
    return f"{', '.join(PACKAGES)} come from {DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)} alone"


def check_user() -> str:
    """Check that the user is not root, has a name without an entry in passwd, and can write temporary files."""
    if os.getuid() == 0:
        raise SelfTestError("it runs as root; run it as its own user, or as any other of group 0")
    with tempfile.TemporaryFile() as file:
        file.write(b"x")
    root, home = ("writable" if os.access(place, os.W_OK) else "read-only" for place in (sys.prefix, Path.home()))
    if root == "writable":
        raise SelfTestError(f"{sys.prefix} can be written by user {os.getuid()}")
    return f"user {os.getuid()}, group {os.getgid()}, named {getpass.getuser()}; writable are {tempfile.gettempdir()}" + (
        "" if home == "read-only" else f" and {Path.home()}"
    )


def check_commands() -> str:
    """Check that the commands of pods are found, also by a login shell, which resets PATH, and that pip is not installed."""
    for option in ("-c", "-lc"):
        for command in _COMMANDS:
            found = subprocess.run(["bash", option, f"command -v {command}"], capture_output=True, text=True, check=False).stdout.strip()
            if Path(found).parent != Path(sys.prefix, "bin"):
                raise SelfTestError(f"bash {option} finds {command} as {found or 'nothing'}, not in {sys.prefix}/bin")
    if importlib.util.find_spec("pip") is not None:
        raise SelfTestError("pip is installed: nothing may be installed at run time")
    return f"{', '.join(_COMMANDS)} are found; pip is not there"


def check_modules() -> str:
    """Check that all modules of our steps, and those that serve MLflow, can be imported."""
    names = ["pipelines.cli.main"]
    for package in PACKAGES[:3]:
        path = importlib.import_module(package).__path__
        names += [module.name for module in pkgutil.walk_packages(path, f"{package}.") if not _is_definition(module.name)]
    for name in (*names, *_SERVER_MODULES):
        try:
            importlib.import_module(name)
        except Exception as error:
            raise SelfTestError(f"{name} can't be imported: {type(error).__name__}: {error}") from error
    libraries = ("torch", "ray", "mlflow", "pyarrow")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in libraries)
    return f"{len(names)} modules of ours, and {versions}, on Python {sys.version.split()[0]}"


def _is_definition(name: str) -> bool:
    """Return True if a module defines a component: kfp's compiler copies its source into the step."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None and "from kfp import" in Path(spec.origin).read_text(encoding="utf-8")


def check_allocator() -> str:
    """Check that tcmalloc is loaded, without which a training on a CPU takes more memory than `iddpm cost` says."""
    if "libtcmalloc" not in Path("/proc/self/maps").read_text(encoding="utf-8"):
        raise SelfTestError(f"tcmalloc is not loaded; LD_PRELOAD is {os.environ.get('LD_PRELOAD', '') or 'empty'}")
    return "memory comes from tcmalloc"


def check_executor() -> str:
    """Check that a step runs in kfp's executor, without the requirements of kfp's compiler and client."""
    with tempfile.TemporaryDirectory() as directory:
        module, result = Path(directory, "component.py"), Path(directory, "result.json")
        module.write_text(_COMPONENT, encoding="utf-8")
        given = {"inputs": {"parameterValues": {"number": 21}}, "outputs": {"outputFile": str(result)}}
        command = ["--component_module_path", str(module), "--executor_input", json.dumps(given), "--function_to_execute", "double"]
        _run([sys.executable, "-m", "kfp.dsl.executor_main", *command], _KFP_RUNTIME="true")
        output = json.loads(result.read_text(encoding="utf-8"))["parameterValues"]["Output"]
    if output != 42:
        raise SelfTestError(f"the step returned {output} for 2 * 21")
    return f"a step runs in the executor of kfp {importlib.metadata.version('kfp')}"


def check_training() -> str:
    """Check that the training loop runs, on a GPU where there is one, compiled there."""
    import torch

    on_card = torch.cuda.is_available()
    options = ["--preset", "digits-hybrid-cosine", "--steps", "2", "--warmup", "1", *(["--compile"] if on_card else [])]
    report = json.loads(_run([sys.executable, "-m", "training.launch.torchrun", *options]).splitlines()[-1])
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    where = report["device"] if on_card else "the processor" + (" (no card is visible)" if torch.version.cuda else "")
    return f"torch for {build} trains on {where}, loss {report['loss']:.3f}"


def check_ray() -> str:
    """Check that Ray starts on this machine, runs a task and ends."""
    from training.distributed.ray_session import ray_session

    with ray_session(num_cpus=1):
        import ray

        @ray.remote
        def user() -> int:
            return os.getuid()

        found = ray.get(user.remote(), timeout=120)
    return f"Ray ran a task, as user {found}"


CHECKS: dict[str, Callable[[], str]] = {
    "names": check_names,
    "user": check_user,
    "commands": check_commands,
    "modules": check_modules,
    "allocator": check_allocator,
    "executor": check_executor,
    "training": check_training,
    "ray": check_ray,
}


def _run(command: list[str], **environment: str) -> str:
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SelfTestError(f"{' '.join(command[1:3])} ended with {done.returncode}: {last}")
    return done.stdout


def main() -> int:
    """Run the named checks, or all."""
    wanted = sys.argv[1:] or list(CHECKS)
    unknown = [name for name in wanted if name not in CHECKS]
    if unknown:
        print(f"there is no check {unknown[0]}; there are {', '.join(CHECKS)}", file=sys.stderr)
        return 2
    failed = 0
    for name in wanted:
        try:
            print(f"ok    {name:<9} {CHECKS[name]()}", flush=True)
        except Exception as error:
            failed += 1
            reason = str(error) if isinstance(error, SelfTestError) else f"{type(error).__name__}: {error}"
            print(f"FAIL  {name:<9} {reason}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
