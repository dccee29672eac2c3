"""Whether a distance ranks a trained, a less trained and two broken models in the right order, and by how many sd.

    python tests/benchmarks/bench_ranking.py RUN REFERENCE --less-trained step=00001500:ema_0.998

RUN is the directory of a run, REFERENCE the reference statistics of its data set; iddpm's report names both. A broken model has
the trained one's weights with normal noise added, of a share of each tensor's own sd. Every model draws from the same noise under a
seed, and the sd is that over the seeds of the difference between neighbours in the ranking.
"""

from __future__ import annotations

import argparse
import itertools
import json

import numpy as np
import torch

from evaluation.distances.reference_statistics import load_reference
from evaluation.distances.sample_scorer import SampleScorer
from evaluation.features.extractors import load_extractor
from evaluation.sampling.generate import generate
from evaluation.sampling.trained_model import TrainedModel, load_model
from training import storage
from training.checkpoints import checkpoint
from training.config.experiment import SamplingConfig

BROKEN = (0.05, 0.2)


def damaged(checkpoint_uri: str, weights: str, share: float) -> TrainedModel:
    """Load a model and add noise to its weights; vectors, which normalise and shift, are left as they are."""
    model = load_model(checkpoint_uri, weights)
    generator = torch.Generator().manual_seed(0)
    for tensor in model.network.state_dict().values():  # type: ignore[union-attr]
        if tensor.ndim > 1:
            tensor += share * tensor.std() * torch.randn(tensor.shape, generator=generator)
    return model


def main() -> None:
    """Print each model's distances and the steps of the ranking, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("reference")
    parser.add_argument("--weights", default="ema_0.99")
    parser.add_argument("--less-trained", default="step=00001500:ema_0.998", help="checkpoint and weights in the same run")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--samples", type=int, default=100)
    given = parser.parse_args()
    trained = checkpoint.latest(given.run)
    assert trained is not None, f"{given.run} has no checkpoint"
    step, _, weights = given.less_trained.partition(":")
    models = {"trained": load_model(trained, given.weights)}
    models["less trained"] = load_model(storage.join(given.run, "checkpoints", step), weights)
    models |= {f"broken by {share:.0%}": damaged(trained, given.weights, share) for share in BROKEN}
    reference = load_reference(given.reference)
    extractor = load_extractor(models["trained"].experiment.evaluation.extractor)
    sampling = SamplingConfig(method="dpm_solver_pp", spacing="10")
    found: dict[str, list[float]] = {}
    for name, model in models.items():
        for seed in range(given.seeds):
            scorer = SampleScorer(extractor, given.samples)
            for indices, images, _ in generate(model, num_images=given.samples, seed=seed, sampling=sampling, batch_size=50):
                scorer.update(indices, images)
            found.setdefault(name, []).append(scorer.scores(reference).distance)
        values = np.array(found[name])
        print(f"{name:<16} {values.mean():8.1f}, sd over {given.seeds} seeds {values.std(ddof=1):.1f}", flush=True)
    names = list(found)
    for better, worse in itertools.pairwise(names):
        steps = np.array(found[worse]) - np.array(found[better])
        print(f"{worse} is {steps.mean():.1f} above {better}: {steps.mean() / steps.std(ddof=1):.1f} sd of a seed's difference")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
