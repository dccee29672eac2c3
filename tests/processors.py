"""Run the numeric tests as other processors would compute them: `make test-processors`.

Instruction sets, oneDNN's kernels and the number of threads decide in which order sums are taken and how exp, cos and
their like round. A tolerance that holds for one of them only is no tolerance. `python tests/processors.py avx2` runs
the variants whose name contains the word; further arguments go to pytest.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = [
    *("tests/unit/diffusion", "tests/unit/models"),
    *(
        "tests/unit/evaluation/distances",
        "tests/unit/evaluation/features/test_features.py",
        "tests/unit/evaluation/sampling/test_generate.py",
    ),
    *("tests/unit/evaluation/test_likelihood.py", "tests/unit/evaluation/test_oracles.py"),
    "tests/unit/training/test_loop.py",
]
# Variant -> environment, number of threads, whether oneDNN is used.
VARIANTS: dict[str, tuple[dict[str, str], int, bool]] = {
    "as-it-is": ({}, 1, True),
    "two-threads": ({}, 2, True),
    "no-onednn": ({}, 1, False),
    "aten-default": ({"ATEN_CPU_CAPABILITY": "default"}, 1, True),
    "aten-avx2": ({"ATEN_CPU_CAPABILITY": "avx2"}, 1, True),
    "onednn-sse41": ({"ONEDNN_MAX_CPU_ISA": "SSE41"}, 1, True),
    "onednn-avx2": ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, 1, True),
    "oldest": ({"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}, 2, False),
}
RUN = """
import sys, pytest, torch
torch.set_num_threads(int(sys.argv[1]))
torch.backends.mkldnn.set_flags(sys.argv[2] == "True")
sys.exit(pytest.main(sys.argv[3:]))
"""


def main(word: str = "", *options: str) -> int:
    """Run the variants and return the number of those that failed."""
    failed = []
    for name, (environment, num_threads, onednn) in VARIANTS.items():
        if word not in name:
            continue
        print(f"== {name}", flush=True)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(num_threads))
        command = [
            sys.executable,
            "-c",
            RUN,
            str(num_threads),
            str(onednn),
            "-q",
            "-m",
            "not gpu",
            "-p",
            "no:cacheprovider",
            *TESTS,
            *options,
        ]
        if subprocess.run(command, cwd=ROOT, env=os.environ | threads | environment, check=False).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all variants passed")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
