"""Make a Debian with Python to build the image on, where no registry can be reached: `make image-base`, as root, with podman.

ENGINE is podman with its options, DEBIAN_MIRROR another mirror than debootstrap's own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from components.container.build import BuildError, find_engine, podman_limits

_DEBIAN = "localhost/iddpm-debian:trixie"
BASE = "localhost/iddpm-debian-python:3.11"


def make_base(podman: list[str]) -> None:
    """Make the image `BASE`, unless it is there."""
    if subprocess.run([*podman, "image", "exists", BASE], check=False).returncode == 0:
        return
    if os.getuid() != 0:
        raise BuildError("debootstrap needs root; run it as root, or name an image to build on by BASE_IMAGE")
    mirror = [os.environ["DEBIAN_MIRROR"]] if os.environ.get("DEBIAN_MIRROR") else []
    with tempfile.TemporaryDirectory(prefix="iddpm-debian-") as root:
        made = subprocess.run(["debootstrap", "--variant=minbase", "trixie", root, *mirror], capture_output=True, text=True, check=False)
        if made.returncode != 0:
            raise BuildError(f"debootstrap failed: {(made.stdout + made.stderr).strip().splitlines()[-1]}")
        with subprocess.Popen(["tar", "-C", root, "-c", "--exclude=./var/cache/apt/archives/*.deb", "."], stdout=subprocess.PIPE) as tar:
            subprocess.run([*podman, "import", "--quiet", "-", _DEBIAN], stdin=tar.stdout, capture_output=True, check=True)
    here = Path(__file__).parent
    command = [*podman, "build", *podman_limits(), "--tag", BASE, "--file", str(here / "base.Containerfile"), str(here)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode != 0:
        raise BuildError(f"podman could not build {BASE}: {built.stderr[-3000:]}")
    subprocess.run([*podman, "image", "untag", _DEBIAN], capture_output=True, check=False)


if __name__ == "__main__":
    try:
        print("image: making a Debian to build on (once, about two minutes)", flush=True)
        make_base(find_engine({"ENGINE": os.environ.get("ENGINE") or "podman"}))
        print(f"image: build on it with: make image BASE_IMAGE={BASE}")
    except BuildError as error:
        sys.exit(f"image: {error}")
