"""Weights of published feature extractors: from a path, from S3 or from their own site, and never without their sha256."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch

from training import storage
from training.config.errors import UserError
from training.console import say


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsFile:
    """A published file.

    Attributes:
        network: In words, for messages.
        name: The file's name, also in torch's hub cache.
        sha256: Of its bytes.
        url: Where it is published.
    """

    network: str
    name: str
    sha256: str
    url: str

    def read(self, weights: str | None = None) -> bytes:
        """The file's bytes, checked.

        Args:
            weights: A path or `s3://` URI; None looks in torch's hub cache and downloads it there.

        Raises:
            UserError: The file can't be had, or its bytes are not the published ones.
        """
        data = self._bytes(weights)
        digest = hashlib.sha256(data).hexdigest()
        if digest != self.sha256:
            raise UserError(
                f"{weights or self.cached} has sha256 {digest}, the standard {self.network} weights have {self.sha256}; "
                f"a distance in other weights is not {'an FID' if self.network == 'Inception' else 'comparable'}. "
                f"Delete the file, or give the path of {self.name}"
            )
        return data

    @property
    def cached(self) -> Path:
        """Where torch's hub cache keeps it."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.name

    def _bytes(self, weights: str | None) -> bytes:
        if weights is not None:
            try:
                return storage.read_bytes(weights)
            except storage.StorageError as error:
                raise UserError(f"the {self.network} weights can't be read: {error}") from error
        if not self.cached.exists():
            self._download()
        return self.cached.read_bytes()

    def _download(self) -> None:
        target = self.cached
        say(f"downloading the {self.network} weights, once")
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=target.parent)
        os.close(handle)
        try:
            urllib.request.urlretrieve(self.url, partial)
            Path(partial).replace(target)
        except (urllib.error.URLError, OSError) as error:
            raise UserError(
                f"the {self.network} weights can't be downloaded ({error}); fetch {self.url} where there is a network and give its "
                f"path or s3:// address as the weights, put it at extractors/{self.name} below the storage root, or at {target}"
            ) from error
        finally:
            Path(partial).unlink(missing_ok=True)
