"""Describe the machine, the versions and the commit of a measurement."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

_PACKAGES = ("torch", "torchvision", "diffusers", "torch-fidelity", "pytorch-fid", "scipy", "numpy", "ray", "kfp", "mlflow")


def describe(device: str) -> dict[str, str]:
    """Plain words: processor, cores, memory, the GPU where one is measured, Python and packages."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    told = {"processor": f"{_processor()}, {cores} cores, {memory:.0f} GiB"}
    if device == "cuda":
        import torch

        told["gpu"] = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    versions = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    return {**told, "versions": ", ".join(versions)}


def card_of(machine: Mapping[str, str]) -> str:
    """The name of the card in a description of `describe("cuda")`: "NVIDIA H200"."""
    return machine["gpu"].rpartition(", CUDA ")[0]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def has_amx() -> bool:
    """Return whether this processor multiplies matrices in bf16 by tiles (AMX); False where the system does not say."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False


def commit(root: Path) -> str:
    """The commit that is checked out; empty outside of git. Files that were changed since are said to be."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=10", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True, check=True
        ).stdout.split("\n")
    except (OSError, subprocess.CalledProcessError):
        return ""
    # What this suite writes itself is no change of what it measures.
    others = [line for line in changed if line and not line.endswith(("BENCHMARKS.md", "training/cost/measured.json"))]
    return head + (" with changes" if others else "")
