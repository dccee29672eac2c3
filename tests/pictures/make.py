"""Make the pictures of README.md from a finished `make demo`, and from a KFP UI where one runs.

    python tests/pictures/make.py                                   # training.png and report.png
    python tests/pictures/make.py --kfp-graph http://localhost:8080/#/runs/details/RUN_ID
    python tests/pictures/make.py --kfp-form "http://localhost:8080/#/runs/new?pipelineId=ID&pipelineVersionId=ID"
    python tests/pictures/make.py --mlflow http://127.0.0.1:PORT/#/experiments/1/runs?workflowType=machine_learning

It needs Chromium (Debian, Ubuntu: apt-get install chromium) and the services of the demo (`iddpm up`).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import requests
import websocket
from PIL import Image, ImageDraw, ImageFont

_DIRECTORY = Path(__file__).parent
_TILE, _GAP, _HEADER = 48, 3, 29  # of a class grid of 8x8 images, in pixels
_COLOURS = 64
_LABEL_WIDTH = 90
# The steps stand in the box of the exit handler; then the graph is fitted to the window.
_OPEN_SWEEP = ("[data-component-id*='runnamecellrenderer']", "[aria-label='Close']")
"""Show the trials of MLflow's first sweep, and close its chat."""
_CLICKS = ("[data-testid='expand-button']", ".react-flow__controls-fitview")
_IN_THE_WAY = ".react-flow__minimap"
"""The small map of the graph, which is empty, and covers a step."""


def training_picture(run_uri: str) -> Image.Image:
    """Stack the first row of each checkpoint's sample grid: one row a checkpoint, all from the same noise."""
    from training import storage

    uris = sorted(uri for uri in storage.list_uris(storage.join(run_uri, "samples")) if re.search(r"step=\d+\.png$", uri))
    grids = [(int(uri.rpartition("step=")[2].removesuffix(".png")), Image.open(io.BytesIO(storage.read_bytes(uri)))) for uri in uris]
    width, row = grids[0][1].width, _TILE + _GAP
    picture = Image.new("RGB", (_LABEL_WIDTH + width, row * len(grids) + _GAP), "white")
    draw = ImageDraw.Draw(picture)
    for index, (step, grid) in enumerate(grids):
        picture.paste(grid.crop((0, _HEADER - _GAP, width, _HEADER + _TILE)), (_LABEL_WIDTH, index * row))
        place = (_LABEL_WIDTH - 8, index * row + _GAP + _TILE / 2)
        draw.text(place, f"step {step:,}", fill=(70, 70, 70), font=ImageFont.load_default(size=14), anchor="rm")
    return picture


@contextlib.contextmanager
def browser() -> Iterator[Callable[..., Any]]:
    """Start headless Chromium and yield a function that sends it one command of the DevTools protocol."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("Chromium is not installed (Debian, Ubuntu: apt-get install chromium)")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:  # Chromium still writes there
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
        process = subprocess.Popen([chromium, *options, "about:blank"], stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            port = next(found[1] for line in process.stderr if (found := re.search(r"ws://127\.0\.0\.1:(\d+)/", line)))
            pages = requests.get(f"http://127.0.0.1:{port}/json", timeout=30).json()
            address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
            connection = websocket.create_connection(address, timeout=60, suppress_origin=True)
            numbers = itertools.count(1)

            def send(method: str, **parameters: Any) -> Any:
                number = next(numbers)
                connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
                while (answer := json.loads(connection.recv())).get("id") != number:
                    pass
                return answer["result"]

            yield send
            connection.close()
        finally:
            process.terminate()
            process.wait()


def screenshot(url: str, *, width: int, height: int, clicks: Sequence[str] = (), seconds: float = 5.0) -> Image.Image:
    """Take a picture of a page after it was loaded and the elements that `clicks` select were clicked; it loads in `seconds`."""
    with browser() as send:
        send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        send("Page.navigate", url=url)
        time.sleep(seconds)
        for click in clicks:
            send(
                "Runtime.evaluate",
                expression=f"document.querySelector({json.dumps(click)}).dispatchEvent(new MouseEvent('click', {{bubbles: true}}))",
            )
            time.sleep(2)
        send("Runtime.evaluate", expression=f"document.querySelector({json.dumps(_IN_THE_WAY)})?.remove()")
        data = send("Page.captureScreenshot", format="png")["data"]
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def save(picture: Image.Image, name: str) -> None:
    """Write a picture with few colours, so that the file is small."""
    path = _DIRECTORY / name
    picture.quantize(_COLOURS).save(path, optimize=True)
    print(f"{path} ({path.stat().st_size / 1000:.0f} kB)")


def main() -> None:
    """Make the pictures that the options ask for."""
    from pipelines.services import services
    from training import storage

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--run", default="", help="URI of a finished run; the demo's where it is empty")
    parser.add_argument("--kfp-graph", default="", help="address of a run's or pipeline's page in a KFP UI")
    parser.add_argument("--kfp-form", default="", help="address of a new run's page in a KFP UI")
    parser.add_argument("--mlflow", default="", help="address of an experiment's page in MLflow")
    options = parser.parse_args()
    if options.kfp_graph:
        save(screenshot(options.kfp_graph, width=1300, height=1000, clicks=_CLICKS, seconds=15.0), "kfp-graph.png")
        return
    if options.kfp_form:
        save(screenshot(options.kfp_form, width=900, height=1800, seconds=15.0), "kfp-form.png")
        return
    if options.mlflow:
        save(screenshot(options.mlflow, width=1300, height=500, clicks=_OPEN_SWEEP, seconds=30.0), "mlflow-experiment.png")
        return
    os.environ.update(services.current().env)
    run_uri = options.run or next(uri for uri in storage.list_dirs("s3://iddpm/runs") if "digits-hybrid-cosine-" in uri)
    save(training_picture(run_uri), "training.png")
    with tempfile.TemporaryDirectory() as directory:
        page = storage.download(storage.join(run_uri, "evaluations", "report.html"), Path(directory) / "report.html")
        save(screenshot(page.as_uri(), width=1200, height=1000), "report.png")


if __name__ == "__main__":
    main()
