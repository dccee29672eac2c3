"""Images on request: the grid, the files, and what is refused before the draw."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from evaluation.records import npz
from evaluation.sampling import sample_set
from evaluation.sampling.draw import DrawRequest, draw_images
from evaluation.sampling.trained_model import ModelSpec
from training.checkpoints import checkpoint
from training.config.errors import UserError
from training.config.experiment import Experiment, SamplingConfig
from training.models.unet import make_model
from training.storage import StorageError


@pytest.fixture
def request_(kept_run_uri: str) -> DrawRequest:
    spec = ModelSpec(checkpoint_uri=checkpoint.checkpoint_uri(kept_run_uri, 200))
    return DrawRequest(model=spec, num_images=25, seed=1, sampling=SamplingConfig(spacing="3"), batch_size=10)


def test_a_grid_and_one_file_for_other_evaluators_are_written(request_: DrawRequest, tmp_path: Path) -> None:
    draw_images(request_, str(tmp_path / "set"), tmp_path / "new" / "grid.png", npz_uri=str(tmp_path / "all.npz"))
    with Image.open(tmp_path / "new" / "grid.png") as picture:
        assert picture.width > 10 * 48
    images, labels = npz.read_images(str(tmp_path / "all.npz"))
    assert len(images) == 25
    assert labels is not None
    assert labels.tolist() == [i % 10 for i in range(25)]
    assert torch.equal(images[:10], next(iter(sample_set.read(str(tmp_path / "set"))))[1][:10])


def test_a_place_that_cannot_be_written_is_refused_before_the_draw(request_: DrawRequest, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for npz_uri, said in ((tmp_path, "is a directory; name the file"), (tmp_path / "file" / "x.npz", "can't have one name")):
        with pytest.raises(StorageError, match=said):
            draw_images(request_, str(tmp_path / "set"), tmp_path / "grid.png", npz_uri=str(npz_uri))
    with pytest.raises(StorageError, match="is a directory"):
        draw_images(request_, str(tmp_path / "set"), tmp_path)
    with pytest.raises(StorageError, match="a file and a directory can't have one name"):
        draw_images(request_, str(tmp_path / "set"), tmp_path / "file" / "grid.png")
    with pytest.raises(UserError, match=r"grid\.jpg: the images are written as PNG"):
        draw_images(request_, str(tmp_path / "set"), tmp_path / "grid.jpg")
    with pytest.raises(UserError, match=r"x\.txt: the file of all images is written as npz; name a file like samples\.npz"):
        draw_images(request_, str(tmp_path / "set"), tmp_path / "grid.png", npz_uri=str(tmp_path / "new" / "x.txt"))
    with pytest.raises(StorageError, match=r"s3:/bucket/grid\.png: is neither a path nor a whole address"):
        draw_images(request_, str(tmp_path / "set"), Path("s3://bucket/grid.png"))
    assert not (tmp_path / "set").exists()


def test_the_second_stage_reads_a_first_stage_with_another_chunk_size(
    request_: DrawRequest, experiment: Experiment, tmp_path: Path, kept_run_uri: str
) -> None:
    upsampler = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, low_res_size=4))
    torch.manual_seed(0)
    state = {name: value + 0.02 * torch.randn(value.shape) for name, value in make_model(upsampler).state_dict().items()}
    checkpoint.save(str(tmp_path / "run"), 1, {"experiment.json": upsampler.to_dict(), "ema_0.99.pt": state})
    small = str(tmp_path / "small")
    first = sample_set.SamplePlan(
        model=request_.model, num_images=25, seed=1, sampling=request_.sampling, labels=(3, 1, 4), chunk_size=10, inputs=()
    )
    sample_set.draw(first, small)
    for number in range(3):
        images, labels = npz.read_images(sample_set.chunk_uri(small, number))
        npz.write_images(sample_set.chunk_uri(small, number), images[:, :, ::2, ::2].contiguous(), labels)
    spec = ModelSpec(checkpoint_uri=checkpoint.checkpoint_uri(str(tmp_path / "run"), 1))
    large = {}
    for batch_size in (4, 25):
        mine = dataclasses.replace(request_, model=spec, low_res_uri=small, batch_size=batch_size)
        draw_images(mine, str(tmp_path / f"large-{batch_size}"), tmp_path / "large.png", npz_uri=str(tmp_path / "large.npz"))
        large[batch_size], labels = npz.read_images(str(tmp_path / "large.npz"))
        assert labels is not None
        assert labels.tolist() == [[3, 1, 4][i % 3] for i in range(25)]
    assert int((large[4].int() - large[25].int()).abs().max()) <= 1
    with pytest.raises(UserError, match="contains 25 images; 26 are to be enlarged"):
        draw_images(dataclasses.replace(request_, model=spec, low_res_uri=small, num_images=26), str(tmp_path / "x"), tmp_path / "x.png")
    with pytest.raises(UserError, match="has no set of images"):
        draw_images(dataclasses.replace(request_, model=spec, low_res_uri=str(tmp_path)), str(tmp_path / "y"), tmp_path / "y.png")
    with pytest.raises(UserError, match="an upsampler without images to enlarge: the data set is needed"):
        draw_images(dataclasses.replace(request_, model=spec), str(tmp_path / "z"), tmp_path / "z.png")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_images": 0}, "must be at least 1"),
        ({"num_images": 10**8 + 1}, "must be at most 100,000,000, got 100,000,001"),
        ({"labels": (12,)}, "not all in 0..9"),
        ({"labels": "data"}, "labels as in the data: the data set is needed"),
        ({"low_res_uri": "somewhere"}, "is not an upsampler"),
    ],
)
def test_an_invalid_request_is_refused(request_: DrawRequest, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw_images(dataclasses.replace(request_, **changes), str(tmp_path / "set"), tmp_path / "grid.png")  # type: ignore[arg-type]
    assert not (tmp_path / "set").exists()
    assert not (tmp_path / "grid.png").exists()


def test_a_damaged_part_of_a_set_is_named_and_drawn_again_once_it_is_deleted(request_: DrawRequest, tmp_path: Path) -> None:
    grid, chunk = tmp_path / "grid.png", Path(sample_set.chunk_uri(str(tmp_path / "set"), 0))
    draw_images(request_, str(tmp_path / "set"), grid)
    whole = grid.read_bytes()
    chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"^{chunk}: .*Delete this file, and the command that draws the set draws its images again"):
        draw_images(request_, str(tmp_path / "set"), grid)
    chunk.unlink()
    draw_images(request_, str(tmp_path / "set"), grid)
    assert grid.read_bytes() == whole


def test_weights_of_another_network_are_named(request_: DrawRequest, experiment: Experiment, tmp_path: Path) -> None:
    wider = experiment.override(["model.model_channels=64"])
    files = {"experiment.json": wider.to_dict(), "model.pt": make_model(experiment).state_dict()}
    spec = ModelSpec(checkpoint_uri=checkpoint.save(str(tmp_path / "run"), 1, files))
    with pytest.raises(UserError, match=r"step=00000001 \(model\): is not a network of the checkpoint's experiment: time_embed"):
        draw_images(dataclasses.replace(request_, model=spec), str(tmp_path / "set"), tmp_path / "grid.png")


def test_labels_follow_the_data_on_request(request_: DrawRequest, digits_uri: str, tmp_path: Path) -> None:
    mine = dataclasses.replace(request_, labels="data", data_uri=digits_uri, num_images=5)
    draw_images(mine, str(tmp_path / "set"), tmp_path / "grid.png")
    labels = next(iter(sample_set.read(str(tmp_path / "set"))))[2]
    assert labels is not None
    assert labels.tolist() != [0, 1, 2, 3, 4]


# Python ends itself by SIGINT, which a shell shows as 130 too, where Ctrl-C came in code made from text, as that of a dataclass.
@pytest.mark.parametrize(("number", "codes"), [(signal.SIGTERM, {143}), (signal.SIGINT, {130, -signal.SIGINT})])
def test_a_command_that_is_stopped_leaves_no_temporary_folder(kept_run_uri: str, tmp_path: Path, number: int, codes: set[int]) -> None:
    words = ["sample", kept_run_uri, str(tmp_path / "grid.png"), "--num-images", "100000", "--steps", "3"]
    process = subprocess.Popen([sys.executable, "-m", "pipelines.cli.main", *words], env={**os.environ, "TMPDIR": str(tmp_path)})
    try:
        while not list(tmp_path.glob("iddpm-samples-*")):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(60) in codes
    finally:
        process.kill()
    assert not list(tmp_path.glob("iddpm-*"))
