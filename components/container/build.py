"""Build the project's image with docker or podman: `python3 -m components.container.build`, which `make image` calls.

It needs only Python's standard library, so a machine that only builds images installs nothing. The environment says what to build:

    IMAGE        name and tag; what the compiled pipelines ask for by default
    TARGET       cpu, or gpu
    BASE_IMAGE   Debian or Ubuntu with Python and venv; the Containerfile's own by default
    TORCH_INDEX  index that torch comes from; empty is pip's own, whose torch is the CUDA build; else see `choose_torch`
    ENGINE       docker or podman, with options if needed, like "podman --runtime runc"

Inside the build pip finds packages where pip finds them on this machine: its mirror, password, certificates and directory of
wheels are passed to the build as secrets and a mount. None of them stays in the image.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import resource
import shlex
import shutil
import ssl
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from components.container.image import DEFAULT_IMAGE, VERSION, ImageError, image_from
from training.config.addresses import contains_password

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("cpu", "gpu")
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"

_PROBE_SECONDS = 10
_CPU_COST = (2, 8, "about 5")
_CUDA_COST = (6.4, 20, "about 15")
"""Size of the image in GB, disk that building it takes, and time on two cores."""

_PIP_OPTIONS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries")


class BuildError(RuntimeError):
    """The image can't be built; one line that names the reason and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Pip:
    """The configuration of pip on this machine.

    Attributes:
        options: Options about the index, by name; a value may have a password in it.
        certificates: File of the certificates that pip trusts; None is its own.
        wheels: A directory that pip looks in and that has wheels; None where there is none.
    """

    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    certificates: Path | None = None
    wheels: Path | None = None

    @property
    def torch_wheel(self) -> str | None:
        """Name of torch's wheel in the directory of wheels; None if it has none."""
        found = sorted(self.wheels.glob("torch-*.whl")) if self.wheels is not None else []
        return found[-1].name if found else None


@dataclass(frozen=True, kw_only=True)
class Build:
    """An image to build.

    Attributes:
        base_image: None is the Containerfile's own.
        torch_index: Address; empty is pip's own index.
    """

    image: str = DEFAULT_IMAGE
    target: str = "cpu"
    base_image: str | None = None
    torch_index: str = ""


def find_engine(environment: Mapping[str, str]) -> list[str]:
    """Return the command that builds: ENGINE, else docker or podman; raise BuildError if none of them answers."""
    given = shlex.split(environment.get("ENGINE", ""))
    candidates = [given] if given else [["docker"], ["podman"]]
    found = [command for command in candidates if shutil.which(command[0])]
    if not found:
        missing = f"{given[0]} is not installed" if given else "neither docker nor podman is installed"
        raise BuildError(f"{missing}; install one (Debian, Ubuntu: apt-get install podman)")
    reason = ""
    for command in found:
        answer = subprocess.run([*command, "info"], capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            return command
        reason = (answer.stderr.strip().splitlines() or ["no message"])[-1]
    raise BuildError(f"{found[-1][0]} does not answer ({reason}); is its service running, and may you use it?")


def pip_configuration() -> Pip:
    """Return the configuration of pip on this machine; empty where there is no pip."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    return parse_pip(listed.stdout if listed.returncode == 0 else "")


def parse_pip(listed: str) -> Pip:
    """Parse the output of `pip config list`. A section of its own and the environment take precedence over [global]."""
    ranks = {"global": 0, "install": 1, ":env:": 2}
    options: dict[str, tuple[int, str]] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        rank = ranks.get(section, -1)
        if rank >= options.get(option, (0, ""))[0]:
            options[option] = (rank, str(ast.literal_eval(value)))
    values = {name: value for name, (_, value) in options.items()}
    certificates = Path(values["cert"]) if values.get("cert") else None
    directories = [Path(place.removeprefix("file://")) for place in values.get("find-links", "").split()]
    return Pip(
        options={name: values[name] for name in _PIP_OPTIONS if name in values},
        certificates=certificates,
        wheels=next((place for place in directories if any(place.glob("*.whl"))), None),
    )


def build(engine: Sequence[str], what: Build, pip: Pip) -> None:
    """Build an image; the engine writes to this process's output. Raise BuildError if it failed."""
    arguments = {"TARGET": what.target, "TORCH_INDEX": what.torch_index, "VERSION": VERSION, **_commit()}
    if what.base_image:
        arguments["BASE_IMAGE"] = what.base_image
    with _secrets(pip) as secrets, tempfile.TemporaryDirectory(prefix="iddpm-build-") as directory:
        built = Path(directory, "id")
        command = [
            *(*engine, "build", "--file", str(ROOT / "components" / "Containerfile"), "--tag", what.image, "--iidfile", str(built)),
            *(word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")),
            *(word for name, path in secrets.items() for word in ("--secret", f"id={name},src={path}")),
            *(("--build-context", f"wheels={pip.wheels}") if pip.wheels else ()),
            *engine_limits(engine),
            str(ROOT),
        ]
        done = subprocess.run(command, env={**os.environ, "DOCKER_BUILDKIT": "1"}, check=False)
        # podman that is told to end does so with the exit code 0
        is_built = built.exists() and bool(built.read_text(encoding="utf-8").strip())
    if done.returncode != 0 or not is_built:
        raise BuildError(f"{engine[0]} could not build {what.image}; its messages above say why")


def engine_limits(engine: Sequence[str]) -> list[str]:
    """Return the options of the engine's `build` and `run` without which podman may fail; none for another engine."""
    return podman_limits() if Path(engine[0]).name == "podman" else []


def podman_limits() -> list[str]:
    """Return options with limits that podman can set: those of this process, as far as podman keeps them.

    Podman's own defaults may need a right that this user lacks. Podman lowers its own limits to the kernel's number of processes and
    to a million files, and nobody without that right can raise them again.
    """
    processes = int(Path("/proc/sys/kernel/pid_max").read_text(encoding="utf-8"))
    limits = {"nofile": (resource.RLIMIT_NOFILE, 1 << 20), "nproc": (resource.RLIMIT_NPROC, processes)}
    words: list[str] = []
    for name, (limit, largest) in limits.items():
        soft, hard = (largest if value == resource.RLIM_INFINITY else min(value, largest) for value in resource.getrlimit(limit))
        words += ["--ulimit", f"{name}={soft}:{hard}"]
    return words


class Torch(NamedTuple):
    """The place that torch comes from: the address of an index, empty for pip's own; a sentence about it; and its build."""

    index_url: str
    message: str
    is_cpu_build: bool


def choose_torch(target: str, pip: Pip, cpu_index: str = TORCH_CPU_INDEX) -> Torch:
    """Choose the place that torch comes from, where TORCH_INDEX does not say it."""
    if pip.torch_wheel is not None:
        return Torch("", f"torch is {pip.torch_wheel} of {pip.wheels}", "+cpu" in pip.torch_wheel)
    if target == "gpu":
        return Torch("", "torch is the CUDA build of pip's index", False)
    own = {"index-url", "extra-index-url"} & set(pip.options)
    if own:
        message = f"torch comes from pip's {' and '.join(sorted(own))}; if that has only the CUDA build, name another by TORCH_INDEX"
        return Torch("", message, False)
    reason = _silence(f"{cpu_index}/torch/", pip)
    if not reason:
        return Torch(cpu_index, f"torch is the CPU build of {cpu_index}", True)
    message = f"torch is the CUDA build of pip's index, as {cpu_index} does not answer ({reason}); TORCH_INDEX names another"
    return Torch("", message, False)


def _silence(url: str, pip: Pip) -> str:
    """Return the reason why nobody answers at an address, empty if somebody does."""
    proxies = dict.fromkeys(("http", "https"), pip.options["proxy"]) if "proxy" in pip.options else None
    context = ssl.create_default_context(cafile=str(pip.certificates) if pip.certificates else None)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(urllib.request.Request(url, method="HEAD"), timeout=_PROBE_SECONDS):
            return ""
    except OSError as error:
        return str(getattr(error, "reason", error))


def storage_of(engine: Sequence[str]) -> str:
    """Return the directory in which an engine keeps images; empty where it does not say."""
    place = "{{.Store.GraphRoot}}" if Path(engine[0]).name == "podman" else "{{.DockerRootDir}}"
    return subprocess.run([*engine, "info", "--format", place], capture_output=True, text=True, check=False).stdout.strip()


def _announce(engine: Sequence[str], what: Build, torch: Torch) -> None:
    """Say what a build takes before it begins."""
    image, disk, minutes = _CPU_COST if torch.is_cpu_build else _CUDA_COST
    storage = storage_of(engine)
    print(f"image: building {what.image} for TARGET={what.target} with {shlex.join(engine)}; {torch.message}")
    print(
        f"image: the first time takes {minutes} minutes and {disk} GB of disk, for an image of {image} GB; "
        "later, where only the sources have changed, up to two minutes"
    )
    if storage and Path(storage).is_dir():
        free = shutil.disk_usage(storage).free / 1e9
        print(f"image: it is kept in {storage}, where {free:.0f} GB are free{'' if free >= disk else ': too few'}")
    sys.stdout.flush()


def _commit() -> dict[str, str]:
    """Return the revision of the sources and its time; empty outside a git checkout."""
    git = ["git", "-C", str(ROOT)]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        revision, created = subprocess.run(
            [*git, "log", "-1", "--format=%H %cI"], capture_output=True, text=True, check=True
        ).stdout.split()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout.strip()
        return {"REVISION": revision + ("-changed" if changed else ""), "CREATED": created}
    return {}


@contextlib.contextmanager
def _secrets(pip: Pip) -> Iterator[dict[str, Path]]:
    """Write the configuration of pip to files that only this user can read, for the time of a build: name -> file."""
    options = dict(pip.options)
    with tempfile.TemporaryDirectory(prefix="iddpm-image-") as name:
        secrets = {"pip.conf": Path(name) / "pip.conf"}
        if pip.certificates is not None:
            secrets["pip-ca.pem"] = pip.certificates
            options["cert"] = "/run/secrets/pip-ca.pem"
        lines = ["[global]", *(f"{option} = {' '.join(value.split())}" for option, value in options.items())]
        secrets["pip.conf"].touch(mode=0o600)
        secrets["pip.conf"].write_text("\n".join(lines) + "\n", encoding="utf-8")
        yield secrets


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what the environment says; return 1 if that fails. There are no arguments but `--help`, which shows the variables."""
    parser = argparse.ArgumentParser(
        prog="python3 -m components.container.build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(arguments)
    environment = os.environ
    target = environment.get("TARGET") or "cpu"
    try:
        if target not in TARGETS:
            raise BuildError(f"TARGET {target!r} is none of {', '.join(TARGETS)}")
        given = environment.get("TORCH_INDEX")
        if given and contains_password(given):
            raise BuildError(
                "TORCH_INDEX contains a password, which logs and lists of processes would show; name that index in pip's configuration "
                "(extra-index-url), which reaches the build as a secret"
            )
        image = image_from(environment.get("IMAGE") or DEFAULT_IMAGE, variable="IMAGE")
        engine = find_engine(environment)
        pip = pip_configuration()
        if given is None:
            torch = choose_torch(target, pip)
        else:
            torch = Torch(given, f"torch comes from {given or 'the index of pip'}, as TORCH_INDEX says", given.endswith("/cpu"))
        what = Build(image=image, target=target, base_image=environment.get("BASE_IMAGE"), torch_index=torch.index_url)
        _announce(engine, what, torch)
        build(engine, what, pip)
    except (BuildError, ImageError) as error:
        print(f"image: {error}", file=sys.stderr)
        return 1
    size = subprocess.run([*engine, "image", "inspect", "--format", "{{.Size}}", what.image], capture_output=True, text=True, check=False)
    print(f"image: built {what.image}, {int(size.stdout or 0) / 1e9:.1f} GB")
    run = shlex.join([*engine, "run", "--rm", *engine_limits(engine)])
    print(f"image: test it with: {run} --shm-size 1g {what.image} python -m components.container.self_test")
    return 0


if __name__ == "__main__":
    sys.exit(main())
