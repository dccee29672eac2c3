"""The Frechet distance beside pytorch-fid's and torch-fidelity's, and the Inception network beside torch-fidelity's."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from measuring import Measured, Run, ratio, take_turns
from torch import Tensor
from training_steps import set_up

from evaluation.distances.frechet import FeatureStatistics, frechet_distance
from evaluation.features.inception import InceptionExtractor
from evaluation.features.pretrained import load_pretrained

DIM = 2048


def measure(run: Run) -> Iterator[tuple[str, Measured]]:
    """The rows of this group."""
    set_up(run.device)
    yield "features", features(run)
    if run.device.type == "cpu":
        yield "features-lite0", few_at_a_time(run)
        yield from distances(run)


def distances(run: Run) -> Iterator[tuple[str, Measured]]:
    """Compute the distance on S_2 = T S_1 T, which needs no root; the reference's factor is computed before, as its file keeps it."""
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    dim = 64 if run.quick else DIM
    generator = torch.Generator().manual_seed(0)

    def rotated(values: Tensor) -> Tensor:
        basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
        return basis * values @ basis.T

    covariance = rotated(torch.logspace(0, -3, dim, dtype=torch.float64))
    transport = rotated(torch.linspace(0.9, 1.1, dim, dtype=torch.float64))
    image = transport @ covariance @ transport
    exact = float(covariance.trace() + image.trace() - 2 * (covariance @ transport).trace())
    zero = torch.zeros(dim, dtype=torch.float64)
    reference = FeatureStatistics(mean=zero, covariance=covariance, num_images=50_000)
    sample = FeatureStatistics(mean=zero, covariance=(image + image.T) / 2, num_images=50_000)
    assert reference.factor is not None
    mean, s_1, s_2 = zero.numpy(), covariance.numpy(), image.numpy()
    first, second = {"mu": mean, "sigma": s_1}, {"mu": mean, "sigma": s_2}

    def pytorch_fid() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of scipy's own argument, which pytorch-fid passes
            return float(calculate_frechet_distance(mean, s_1, mean, s_2))

    sides = {
        "pytorch-fid": pytorch_fid,
        "torch-fidelity": lambda: fid_statistics_to_metric(first, second, False),
        "ours": lambda: frechet_distance(reference, sample),
    }
    times = take_turns(sides, rounds=run.rounds(2), warmup=0)
    error = abs(frechet_distance(reference, sample) - exact)
    if error > 1e-8:
        raise AssertionError(f"the distance is wrong by {error:.2g}")
    yield "distance", ratio(times["pytorch-fid"], times["ours"], f"ours is off by {error:.0e}", error=error)
    yield "distance-eigvals", ratio(times["torch-fidelity"], times["ours"])


def features(run: Run) -> Measured:
    """One batch through the network, on the same weights, which are drawn by a seed: speed does not depend on them."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    state = seeded_inception()
    shipped = FeatureExtractorInceptionV3("seeded", ["2048"], feature_extractor_weights_path=_file_of(state)).to(run.device)
    ours = InceptionExtractor(state, name="seeded", sha256="", device=run.device)
    batch = 1 if run.quick else 64 if run.device.type == "cuda" else 16
    images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)).to(run.device)

    @torch.inference_mode()
    def theirs() -> Tensor:
        found: Tensor = shipped(images)[0]
        return found

    times = take_turns({"theirs": theirs, "ours": lambda: ours(images)}, rounds=run.rounds(5), device=run.device)
    error = float((ours(images) - theirs()).norm() / theirs().norm())
    if error > (1e-2 if run.device.type == "cuda" else 1e-5):  # TF32 there
        raise AssertionError(f"the features differ by {error:.2g}")
    return ratio(times["theirs"], times["ours"], f"batch {batch}; features differ by {error:.0e}", error=error)


def few_at_a_time(run: Run) -> Measured:
    """The installed network on 64 grey images of 28 pixels."""
    ours = load_pretrained("efficientnet-lite0")
    images = torch.randint(0, 256, (1 if run.quick else 64, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))

    @torch.inference_mode()
    def at_once() -> Tensor:
        found: Tensor = ours.network(images.expand(-1, 3, -1, -1))
        return found

    times = take_turns({"at once": at_once, "ours": lambda: ours(images)}, rounds=run.rounds(5), device=run.device)
    error = float((ours(images) - at_once()).norm() / at_once().norm())
    if error > 1e-5:
        raise AssertionError(f"the features differ by {error:.2g}")
    return ratio(times["at once"], times["ours"], f"features differ by {error:.0e}", error=error)


def seeded_inception() -> dict[str, Tensor]:
    """Weights of the Inception network's shapes that tell images apart."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, state_dict: object, *args: object, **kwargs: object) -> None:
            """Keeps the initial weights."""

    state = Unloaded("seeded", ["2048"], feature_extractor_weights_path=_file_of({})).state_dict()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        if tensor.ndim == 4:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif name.endswith(("running_mean", "bn.bias")):
            tensor.normal_(0, 0.1, generator=generator)
        elif name.endswith(("running_var", "bn.weight")):
            tensor.uniform_(0.8, 1.2, generator=generator)
    return dict(state)


def _file_of(state: dict[str, Any]) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer
