"""The error of images, or of their features, that are not finite."""

from __future__ import annotations

from training.config.errors import UserError


class NotFiniteError(UserError):
    """A model's images, or the features of images, are not finite: there is no distance."""
