"""A small classifier of 8x8 digits, whose features replace the Inception network's for the demo's data.

It was trained on the training split alone (tests/golden/train_digit_classifier.py), and its weights are part of the
repository. A distance in its features ranks models of digits; it is no FID and can't be compared with one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional

from training.config.errors import UserError
from training.shapes import Float

WEIGHTS_PATH = Path(__file__).parent / "digit_classifier.safetensors"
WEIGHTS_SHA256 = "22b2c1d99f1b6681bd89b341c30cd349c5164cda0552e4da9b3b02392a575948"
NUM_FEATURES = 64


class DigitClassifier(nn.Module):
    """Three convolutions and two linear layers: 8x8 grey image -> 64 features -> 10 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(1, 24, 3, padding=1)
        self.conv_2 = nn.Conv2d(24, 32, 3, stride=2, padding=1)
        self.conv_3 = nn.Conv2d(32, 24, 3, padding=1)
        self.embed = nn.Linear(24 * 4 * 4, NUM_FEATURES)
        self.classify = nn.Linear(NUM_FEATURES, 10)

    def features(self, images: Float[Tensor, "batch 1 8 8"]) -> Float[Tensor, "batch 64"]:
        """Return the 64 features of images in [-1, 1]."""
        h = functional.silu(self.conv_1(images))
        h = functional.silu(self.conv_2(h))
        h = functional.silu(self.conv_3(h))
        return functional.silu(self.embed(h.flatten(1)))

    def forward(self, images: Float[Tensor, "batch 1 8 8"]) -> Float[Tensor, "batch 10"]:
        """Return the logits of the ten digits."""
        logits: Tensor = self.classify(self.features(images))
        return logits


def load_classifier() -> DigitClassifier:
    """Load the committed classifier on the CPU, in evaluation mode; refuse weights of another version of the code."""
    data = WEIGHTS_PATH.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise UserError(f"{WEIGHTS_PATH.name} has sha256 {digest}, not {WEIGHTS_SHA256}: restore it with git checkout")
    model = DigitClassifier()
    model.load_state_dict(load(data))
    return model.eval().requires_grad_(False)
