"""Speed and memory of evaluation against the libraries that others use; `make bench-eval`.

Each ratio is taken in this process, one thread, both sides alternating, the smallest of several process times. It fails
where a promised ratio is missed, and prints one JSON line.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from evaluation.fid import FeatureStatistics, Moments, frechet_distance
from evaluation.inception import InceptionExtractor

GOALS = {"distance_speedup": 12.0, "extractor_speedup": 1.6}
MAX_SET_BYTES, MAX_DISTANCE_ERROR, MAX_FEATURE_ERROR, MAX_FID_DIFFERENCE = 40e6, 1e-8, 1e-5, 1e-6
DIM = 2048


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _ratio(theirs: Callable[[], object], ours: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    pairs = [(_seconds(theirs), _seconds(ours)) for _ in range(repeats)]
    slow, fast = min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)
    return slow / fast, slow, fast


def distance() -> dict[str, float]:
    """Against scipy's sqrtm at 2,048 dimensions, on S_2 = T S_1 T, whose distance needs no root."""
    from scipy.linalg import sqrtm

    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator, dtype=torch.float64)).Q
    covariance = rotation * torch.logspace(0, -3, DIM, dtype=torch.float64) @ rotation.T
    other = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator, dtype=torch.float64)).Q
    transport = other * torch.linspace(0.9, 1.1, DIM, dtype=torch.float64) @ other.T
    image = transport @ covariance @ transport
    exact = float(covariance.trace() + image.trace() - 2 * (covariance @ transport).trace())
    zero = torch.zeros(DIM, dtype=torch.float64)
    reference = FeatureStatistics(mean=zero, covariance=covariance)
    assert reference.factor is not None, "computed once, before anything is timed, as a statistics file keeps it"
    sample = FeatureStatistics(mean=zero, covariance=(image + image.T) / 2)
    s_1, s_2 = covariance.numpy(), image.numpy()

    def theirs() -> float:
        return float(s_1.trace() + s_2.trace() - 2 * sqrtm(s_1 @ s_2).real.trace())

    ratio, slow, fast = _ratio(theirs, lambda: frechet_distance(reference, sample), repeats=2)
    return {
        "distance_speedup": ratio,
        "sqrtm_seconds": slow,
        "distance_seconds": fast,
        "distance_error": abs(frechet_distance(reference, sample) - exact),
        "sqrtm_error": abs(theirs() - exact),
    }


def moments() -> dict[str, float]:
    """Bytes of one set of moments, however many images it has seen."""
    held = Moments(DIM)
    held.update(torch.randn(64, DIM))
    return {"set_bytes": float(sum(t.numel() * t.element_size() for t in (held.total, held.outer)))}


def seeded_inception() -> dict[str, Tensor]:
    """Weights of the Inception network's shapes that tell images apart."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, state_dict: object, *args: object, **kwargs: object) -> None:
            """Keeps the initial weights."""

    buffer = io.BytesIO()
    torch.save({}, buffer)
    buffer.seek(0)
    state = Unloaded("seeded", ["2048"], feature_extractor_weights_path=buffer).state_dict()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        if tensor.ndim == 4:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif name.endswith(("running_mean", "bn.bias")):
            tensor.normal_(0, 0.1, generator=generator)
        elif name.endswith(("running_var", "bn.weight")):
            tensor.uniform_(0.8, 1.2, generator=generator)
    return dict(state)


def extractor(batch_size: int = 16, num_images: int = 64) -> dict[str, float]:
    """Against torch-fidelity's module as shipped, on the same weights; and its FID of the same images."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    state = seeded_inception()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    shipped = FeatureExtractorInceptionV3("seeded", ["2048"], feature_extractor_weights_path=buffer)
    ours = InceptionExtractor(state, name="seeded", sha256="")
    generator = torch.Generator().manual_seed(1)
    sets = [torch.randint(0, 128 + 128 * k, (num_images, 3, 32, 32), dtype=torch.uint8, generator=generator) for k in (0, 1)]

    def theirs(images: Tensor) -> Tensor:
        with torch.inference_mode():
            features: Tensor = shipped(images)[0]
        return features

    batch = sets[1][:batch_size]
    ratio, slow, fast = _ratio(lambda: theirs(batch), lambda: ours(batch), repeats=5)
    reference, found = theirs(batch), ours(batch)
    their_statistics = [fid_features_to_statistics(torch.cat([theirs(part) for part in s.split(batch_size)])) for s in sets]
    our_moments = []
    for images in sets:
        held = Moments(DIM)
        for part in images.split(batch_size):
            held.update(theirs(part))
        our_moments.append(held)
    their_fid = fid_statistics_to_metric(*their_statistics, False)["frechet_inception_distance"]
    return {
        "extractor_speedup": ratio,
        "shipped_images_per_second": batch_size / slow,
        "images_per_second": batch_size / fast,
        "feature_error": float((found - reference).norm() / reference.norm()),
        "fid_relative_difference": abs(frechet_distance(*our_moments) - their_fid) / abs(their_fid),
    }


def main() -> int:
    """Measures everything; the exit status is the number of goals that were missed."""
    torch.set_num_threads(1)
    measured = distance() | moments() | extractor()
    print(json.dumps({name: float(f"{value:.4g}") for name, value in measured.items()}))
    missed = [f"{name} {measured[name]:.2f} < {goal}" for name, goal in GOALS.items() if measured[name] < goal]
    limits = {
        "set_bytes": MAX_SET_BYTES,
        "distance_error": MAX_DISTANCE_ERROR,
        "feature_error": MAX_FEATURE_ERROR,
        "fid_relative_difference": MAX_FID_DIFFERENCE,
    }
    missed += [f"{name} {measured[name]:.3g} > {limit:g}" for name, limit in limits.items() if measured[name] > limit]
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return len(missed)


if __name__ == "__main__":
    sys.exit(main())
