"""Trains the classifier of 8x8 digits and writes its weights; prints the digest for `WEIGHTS_SHA256`."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from evaluation.features.digit_classifier import WEIGHTS_PATH, DigitClassifier
from training.data.sources.published import digits as source_of
from training.diffusion.pixels import to_model_range
from training.shapes import Float, Int64, UInt8


def train(images: UInt8[Tensor, "batch 1 8 8"], labels: Int64[Tensor, " batch"], *, num_epochs: int = 60, seed: int = 0) -> DigitClassifier:
    """Train a classifier by AdamW on shifted images with noise. The same seed gives the same weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    batch_size, num_images = 64, len(images)
    num_steps = num_epochs * (num_images // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=num_steps)
    for step in range(num_steps):
        if step % (num_images // batch_size) == 0:
            order = torch.randperm(num_images, generator=generator)
        position = step % (num_images // batch_size) * batch_size
        chosen = order[position : position + batch_size]
        x = _augmented(to_model_range(images[chosen]), generator)
        loss = functional.cross_entropy(model(x), labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def _augmented(x: Float[Tensor, "batch 1 8 8"], generator: torch.Generator) -> Float[Tensor, "batch 1 8 8"]:
    """Shift images by up to one pixel and add noise, so that features do not depend on one pixel."""
    padded = functional.pad(x, (1, 1, 1, 1), value=-1.0)
    rows, columns = (int(v) for v in torch.randint(0, 3, (2,), generator=generator))
    shifted = padded[:, :, rows : rows + 8, columns : columns + 8]
    return shifted + 0.1 * torch.randn(x.shape, generator=generator)


def accuracy(model: DigitClassifier, images: UInt8[Tensor, "batch 1 8 8"], labels: Int64[Tensor, " batch"]) -> float:
    """Return the fraction of images that are classified correctly."""
    return float((model(to_model_range(images)).argmax(dim=1) == labels).float().mean())


def digits(split: str) -> tuple[UInt8[Tensor, "batch 1 8 8"], Int64[Tensor, " batch"]]:
    """Return images and labels of the demo's split "train" or "test"."""
    source = source_of(split)
    items = source.listing().items
    with source.open() as read:
        images = torch.stack([torch.from_numpy(np.asarray(read(item.locator))).permute(2, 0, 1) for item in items])
    return images, torch.tensor([item.label for item in items], dtype=torch.int64)


def main() -> None:
    """Train the classifier, write its weights, and print the digest for `WEIGHTS_SHA256`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=WEIGHTS_PATH, help="the file to write")
    path: Path = parser.parse_args().out
    torch.set_num_threads(1)
    model = train(*digits("train"))
    path.write_bytes(save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}))
    test_accuracy = accuracy(model, *digits("test"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    print(f"test accuracy {test_accuracy:.4f}; {path.stat().st_size:,} bytes; WEIGHTS_SHA256 = {digest}")


if __name__ == "__main__":
    main()
