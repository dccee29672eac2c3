"""The benchmark suite: `make bench`, or `python tests/benchmarks/bench.py [GROUP ...] [--write]`.

The groups of rows are measured one after another, each in its own process with one thread. The results are stored in
`.iddpm/bench/cpu.json`, or `cuda-CARD.json` for each card. If a group fails, it is reported and the others continue. Some groups
can be measured again: the results of the others stay, if the machine and the versions are the same. `--write` puts the tables into
BENCHMARKS.md, and the speeds that `iddpm cost` uses into `training/cost/measured.json`; what other cards have there stays.

The exit status is 1 where a goal was missed, a group failed or time was over before a group, after everything is written.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from machine import card_of, commit, describe
from measuring import Run
from reports import calibrations, found_of, markdown, on_screen, summary
from rows import GROUPS, rows_of

ROOT = Path(__file__).parents[2]
SECONDS_A_GROUP = 600
MINUTES_ON_A_CARD = 30.0
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def main(arguments: list[str] | None = None) -> int:
    """Measure the groups, print the results and store them."""
    parser = argparse.ArgumentParser(prog="bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"groups to measure, of {', '.join(GROUPS)}; all by default")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="use the smallest sizes, to test that the suite runs")
    parser.add_argument("--write", action="store_true", help="rewrite BENCHMARKS.md and training/cost/measured.json")
    parser.add_argument(
        "--minutes",
        type=float,
        help=f"end by then: no group begins later, and one that runs is ended; by default {MINUTES_ON_A_CARD:g} on cuda, and no end on cpu",
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / ".iddpm" / "bench", help="directory of the results and of the files that groups share"
    )
    parser.add_argument("--measure", metavar="GROUP", help=argparse.SUPPRESS)  # the process of one group
    options = parser.parse_args(arguments)
    if options.measure:
        return _measure(options)
    problem = _problem(options)
    if problem:
        parser.exit(2, f"error: {problem}\n")
    wanted = tuple(options.groups) or tuple(dict.fromkeys(row.group for row in rows_of(GROUPS, options.device)))
    results = _earlier(options)
    minutes = options.minutes if options.minutes is not None else MINUTES_ON_A_CARD if options.device == "cuda" else math.inf
    end = time.monotonic() + 60 * minutes
    late: tuple[str, ...] = ()
    for position, group in enumerate(wanted):
        started = time.monotonic()
        if started >= end:
            late = wanted[position:]
            break
        failure = _in_own_process(group, options, min(SECONDS_A_GROUP, end - started))
        results["groups"][group] = {
            "date": datetime.date.today().isoformat(),
            "commit": commit(ROOT),
            "seconds": round(time.monotonic() - started, 1),
            "failure": failure,
            "rows": _taken(group, options),
        }
        print(on_screen(results, (group,), options.device), flush=True)
        _keep(options, results)
    print(summary(results, options.device))
    if late:
        print(f"stopped: {minutes:g} minutes were over before {', '.join(late)}")
    if options.write:
        path = ROOT / "BENCHMARKS.md"
        path.write_text(markdown(path.read_text(), results, options.device))
        calibrations(ROOT / "training" / "cost" / "measured.json", results, options.device)
        print("written: BENCHMARKS.md, training/cost/measured.json")
    return 0 if not late and _all_met(results, wanted, options.device) else 1


def _problem(options: argparse.Namespace) -> str | None:
    unknown = [group for group in options.groups if group not in GROUPS]
    if unknown:
        return f"there is no group {unknown[0]!r}; the groups are {', '.join(GROUPS)}"
    if options.write and options.quick:
        return "--quick measures nothing that could be written"
    if options.minutes is not None and not options.minutes > 0:
        return f"--minutes must be above 0, got {options.minutes:g}"
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return "this machine has no GPU that torch can use; make bench measures on the CPU"
        nowhere = [group for group in options.groups if not rows_of((group,), "cuda")]
        if nowhere:
            return f"the group {nowhere[0]!r} has no row for a GPU; make bench measures it"
    return None


def _in_own_process(group: str, options: argparse.Namespace, seconds: float) -> str | None:
    """Measure a group in so many seconds at most; return the reason of its failure, or None."""
    _rows_path(group, options).unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__)), "--measure", group, "--device", options.device, "--out", str(options.out)]
    command += ["--quick"] if options.quick else []
    threads = _ONE_THREAD if options.device == "cpu" else {}
    log_path = options.out / f"{group}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **threads}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            return f"took longer than {seconds:.0f} s (its output: {log_path})"
        except BaseException:
            _end(process)
            raise
    if status == 0:
        return None
    said = log_path.read_text(errors="replace").strip().splitlines()
    return f"{said[-1] if said else f'ended with {status} and said nothing'} (its output: {log_path})"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a group and the processes that it started."""
    import signal

    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _measure(options: argparse.Namespace) -> int:
    """Measure one group in this process; write each row as a line of JSON as soon as it is measured."""
    import torch

    scratch = options.out / ("scratch-quick" if options.quick else "scratch")
    scratch.mkdir(parents=True, exist_ok=True)
    run = Run(device=torch.device(options.device), quick=options.quick, scratch=scratch)
    known = {row.key for row in rows_of((options.measure,), options.device)}
    with _rows_path(options.measure, options).open("a") as file:
        for name, measured in importlib.import_module(f"bench_{options.measure}").measure(run):
            key = f"{options.measure}.{name}"
            if key not in known:
                raise AssertionError(f"{key} is no row of rows.py for this device")
            file.write(json.dumps({"key": key, **measured.to_dict()}) + "\n")
            file.flush()
    return 0


def _rows_path(group: str, options: argparse.Namespace) -> Path:
    return Path(options.out) / f"{group}.{options.device}.jsonl"


def _taken(group: str, options: argparse.Namespace) -> dict[str, Any]:
    path = _rows_path(group, options)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return {row.pop("key"): row for row in rows}


def _results_path(options: argparse.Namespace, machine: dict[str, str]) -> Path:
    card = "-" + re.sub(r"[^a-z0-9]+", "-", card_of(machine).lower()) if options.device == "cuda" else ""
    return Path(options.out) / f"{options.device}{card}{'-quick' if options.quick else ''}.json"


def _earlier(options: argparse.Namespace) -> dict[str, Any]:
    """Return the stored results of this machine and these versions; without groups if there are none."""
    now = describe(options.device)
    path = _results_path(options, now)
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text())
        if kept["machine"] == now:
            return kept
    return {"machine": now, "groups": {}}


def _keep(options: argparse.Namespace, results: dict[str, Any]) -> None:
    _results_path(options, results["machine"]).write_text(json.dumps(results, indent=2) + "\n")


def _all_met(results: dict[str, Any], groups: tuple[str, ...], device: str) -> bool:
    return not {"MISSED", "FAILED"} & {row.verdict(found_of(row, results), device) for row in rows_of(groups, device)}


if __name__ == "__main__":
    raise SystemExit(main())
