"""Reference statistics: mean and covariance of the real images' features, with their provenance.

Supplement section 1: the full training set for CIFAR-10 and ImageNet, 50K training samples for LSUN.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.distances.frechet import FeatureStatistics, Moments
from evaluation.features.extractors import ExtractorId, ExtractorTraits, FeatureExtractor, distance_name, extractor_traits
from evaluation.records import npz
from training import storage
from training.config.errors import UserError
from training.config.experiment import Experiment
from training.config.validation import parse_json
from training.console import say, with_progress
from training.data.format.manifest import Manifest, read_manifest
from training.data.loading.row_groups import iterate

BATCH_SIZE = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """The origin of statistics. Two sets are comparable only if all fields but the counts agree.

    Attributes:
        data_name: The data set and its release, as its manifest names it.
        data_digest: Content digest of the data set.
        image_size: Height and width in pixels.
        image_channels: 1 (grey) or 3 (RGB).
        resize: The method that made larger images this size.
        extractor_sha256: Digest of the extractor's weights.
        class_counts: Images of each label, from the data set's manifest; empty without labels.
    """

    data_name: str
    data_digest: str
    split: str
    image_size: int
    image_channels: int
    resize: str
    num_images: int
    extractor: str
    extractor_sha256: str
    class_counts: tuple[int, ...] = ()

    @property
    def distance_name(self) -> str:
        """Name of a distance to these statistics."""
        return distance_name(self.extractor, self.extractor_sha256)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**dataclasses.asdict(self), "class_counts": list(self.class_counts)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Provenance:
        """Return the provenance of a `to_dict`."""
        return cls(**{**value, "class_counts": tuple(value["class_counts"])})


@dataclass(frozen=True, kw_only=True)
class ReferenceStatistics:
    """Statistics of the real images.

    Attributes:
        spatial: Those of the spatial features, for the sFID; None if the file has none.
        provenance: Their origin; None for a file from elsewhere that does not record it (see `import_statistics`).
        images_uri: A batch of the real images, for metrics that compare single ones, if the statistics come with one (an ADM
            reference batch); empty if the data set's own images are to be used.
    """

    features: FeatureStatistics
    spatial: FeatureStatistics | None = None
    provenance: Provenance | None
    uri: str = ""
    images_uri: str = ""

    def require(
        self,
        *,
        extractor: ExtractorId | FeatureExtractor,
        experiment: Experiment | None = None,
        manifest: Manifest | None = None,
        batch_shape: Sequence[int] = (),
    ) -> Provenance:
        """Return the provenance, after checking that samples may be compared with these statistics.

        `extractor` made the samples' features, `experiment` the samples, and `manifest` is of the data that they should resemble.
        `batch_shape` is that of the samples, [N, height, width, channels], where they come from a file.

        Raises:
            UserError: The provenance is unknown, or differs, or the extractor has another number of features.
        """
        if self.provenance is None:
            raise UserError(
                f"{self.uri or 'these statistics'} do not record their images, extractor and resize; declare them once with "
                "'iddpm adopt-reference'"
            )
        expected: dict[str, Any] = {"extractor": extractor.name, "extractor_sha256": extractor.sha256}
        if experiment is not None:
            data = experiment.data
            expected |= {
                "data_name": data.name,
                "image_size": data.image_size,
                "image_channels": data.image_channels,
                "resize": data.resize,
            }
        if batch_shape:
            _, height, width, channels = batch_shape
            expected |= {"image_size": height if height == width else f"{height}x{width}", "image_channels": channels}
        if manifest is not None:
            expected |= {"data_digest": manifest.content_digest, "split": manifest.split, "resize": manifest.resize}
        _require_equal(self.provenance, expected, f"the reference {self.uri or 'statistics'} can't be compared with this")
        dim = len(self.features.mean)
        if isinstance(extractor, ExtractorTraits) and dim != extractor.dim:
            message = f"the reference {self.uri or 'statistics'} has {dim:,} features, {extractor.name} has {extractor.dim:,}"
            raise UserError(f"{message}; take statistics of this extractor's features")
        return self.provenance


def require_comparable(first: ReferenceStatistics, second: ReferenceStatistics) -> None:
    """Refuse two statistics whose provenances differ in how the images were made; data and split may differ."""
    if first.provenance is None or second.provenance is None:
        return
    names = ("image_size", "image_channels", "resize", "extractor", "extractor_sha256")
    expected = {name: getattr(second.provenance, name) for name in names}
    _require_equal(first.provenance, expected, f"{first.uri} can't be compared with {second.uri}")


def _require_equal(provenance: Provenance, expected: Mapping[str, Any], message: str) -> None:
    found = {name: getattr(provenance, name) for name in expected}
    differing = [f"{name}: {found[name]!r}, not {value!r}" for name, value in expected.items() if found[name] != value]
    if differing:
        raise UserError(f"{message}: {'; '.join(differing)}")


def reference_name(manifest: Manifest, extractor: ExtractorId | FeatureExtractor, num_images: int | None = None) -> str:
    """Return a file name that identifies data, extractor, resize and count."""
    count = _count(manifest, num_images)
    data = f"{manifest.name}-{manifest.split}-{manifest.content_digest[:12]}-{manifest.resize}"
    return f"{data}-{extractor.name}-{extractor.sha256[:8]}-n{count}.npz"


def compute_reference(
    dataset_uri: str,
    extractor: FeatureExtractor,
    out_uri: str,
    num_images: int | None = None,
    *,
    before: Callable[[], None] = lambda: None,
) -> ReferenceStatistics:
    """Compute statistics of a data set's images, or read them if they are stored already.

    `out_uri` is a `.npz` file, or a directory in which `reference_name` names it. `num_images` are taken from the data set's
    beginning (its order is a seeded shuffle); None is all. `before` is called before they are computed, which takes minutes for a large
    data set; what it raises is passed on.

    Raises:
        UserError: `out_uri` contains other statistics, there is no such data set, or fewer than two images.
    """
    stored = find_reference(dataset_uri, extractor, out_uri, num_images)
    if stored is not None:
        return stored
    manifest = read_manifest(dataset_uri)
    count, uri = _count(manifest, num_images), _reference_uri(manifest, extractor, out_uri, num_images)
    if count < 2:
        raise UserError(f"{dataset_uri}: statistics take 2 images or more, and there is {count}; prepare more of them")
    before()
    images = (images for _, images, _ in iterate(dataset_uri, BATCH_SIZE, stop=count))
    moments, spatial = moments_of(with_progress(images, "computed the features of", count, len), extractor)
    provenance = dataclasses.replace(provenance_of(manifest, extractor), num_images=moments.num_images)
    save_reference(
        uri, moments.statistics(), provenance, spatial=None if spatial is None or spatial.num_images < 2 else spatial.statistics()
    )
    say(f"{uri}: statistics of {moments.num_images:,} images in {extractor.dim} features of {extractor.name}")
    return load_reference(uri)


def find_reference(
    dataset_uri: str, extractor: ExtractorId | FeatureExtractor, out_uri: str, num_images: int | None = None
) -> ReferenceStatistics | None:
    """Read statistics that `compute_reference` has stored; return None if there are none. Raises as `compute_reference`."""
    manifest = read_manifest(dataset_uri)
    count, uri = _count(manifest, num_images), _reference_uri(manifest, extractor, out_uri, num_images)
    if not storage.exists(uri):
        return None
    stored = load_reference(uri)
    provenance = stored.require(extractor=extractor, manifest=manifest)
    if provenance.num_images != count:
        raise UserError(f"{uri} contains statistics of {provenance.num_images:,} images, not {count:,}; give another name")
    say(f"{uri}: statistics of {count:,} images exist already")
    return stored


def _reference_uri(manifest: Manifest, extractor: ExtractorId | FeatureExtractor, out_uri: str, num_images: int | None) -> str:
    return out_uri if out_uri.endswith(".npz") else storage.join(out_uri, reference_name(manifest, extractor, num_images))


def _count(manifest: Manifest, num_images: int | None) -> int:
    return manifest.num_images if num_images is None else min(num_images, manifest.num_images)


def moments_of(images: Iterable[Tensor], extractor: FeatureExtractor) -> tuple[Moments, Moments | None]:
    """Return moments of the features of batches of uint8 NCHW images, and of their spatial features if the extractor has them."""
    moments = Moments(extractor.dim)
    spatial: Moments | None = None
    for batch in images:
        outputs = extractor.outputs(batch)
        moments.update(outputs["features"])
        if "spatial" in outputs:
            spatial = spatial or Moments(outputs["spatial"].shape[1])
            spatial.update(outputs["spatial"])
    return moments, spatial


def save_reference(
    uri: str, features: FeatureStatistics, provenance: Provenance, *, spatial: FeatureStatistics | None = None, images_uri: str = ""
) -> None:
    """Write statistics, their factor and their provenance; other tools find mu and sigma in the file, too."""
    arrays: npz.Arrays = {
        "mu": features.mean.numpy(),
        "sigma": features.covariance.numpy(),
        "factor": features.factor.numpy(),
        "num_images": np.array(provenance.num_images),
        "provenance": np.array(json.dumps(provenance.to_dict())),
    }
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean.numpy(), "sigma_s": spatial.covariance.numpy()}
    if images_uri:
        arrays["images_uri"] = np.array(images_uri)
    npz.write_arrays(uri, arrays)


def load_reference(uri: str) -> ReferenceStatistics:
    """Read statistics: ours with their provenance, or EDM's, pytorch-fid's and ADM's without one.

    Raises:
        UserError: The file is no npz with statistics.
        StorageError: It can't be read.
    """
    with npz.open_npz(uri) as file:  # an array is read when it is indexed: a batch may contain gigabytes of images
        features = statistics_from_arrays(file, uri)
        spatial = statistics_from_arrays(file, uri, "_s") if "mu_s" in file else None
        if "factor" in file:
            features = dataclasses.replace(features, stored_factor=torch.from_numpy(file["factor"]))
        provenance = None
        if "provenance" in file:
            try:
                provenance = Provenance.from_dict(parse_json(str(file["provenance"])))
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{uri}: its provenance can't be read ({error}); compute it again") from error
        images_uri = str(file["images_uri"]) if "images_uri" in file else ""
        if "arr_0" in file:
            images_uri = uri
    return ReferenceStatistics(features=features, spatial=spatial, provenance=provenance, uri=uri, images_uri=images_uri)


def statistics_from_arrays(arrays: Mapping[str, Any], uri: str, suffix: str = "") -> FeatureStatistics:
    """Return the mean `mu` and the covariance `sigma`, or the spatial ones with the suffix "_s"; refuse arrays that are neither."""
    missing = [name for name in (f"mu{suffix}", f"sigma{suffix}") if name not in arrays]
    if missing:
        raise UserError(f"{uri} contains {', '.join(arrays) or 'nothing'}; statistics need {' and '.join(missing)}")
    stored = [arrays[f"{name}{suffix}"] for name in ("mu", "sigma")]
    for name, array in zip(("mu", "sigma"), stored, strict=True):
        if array.dtype.kind not in "fiu":
            raise UserError(f"{uri}: {name}{suffix} is {array.dtype}; statistics are real numbers, so export the file again")
    count = arrays.get("num_images")
    try:
        mean, covariance = (torch.from_numpy(array.astype(np.float64)) for array in stored)
        num_images = None if count is None else int(count)
    except (TypeError, ValueError) as error:
        raise UserError(f"{uri}: num_images is no number ({error})") from error
    if num_images is not None and num_images < 2:
        raise UserError(f"{uri}: num_images is {num_images}, but statistics take 2 images or more; export the file again")
    if mean.ndim != 1 or not len(mean) or tuple(covariance.shape) != (len(mean), len(mean)):
        shapes = f"mu{suffix} {tuple(mean.shape)} and sigma{suffix} {tuple(covariance.shape)}"
        raise UserError(f"{uri}: {shapes} are not a mean and its covariance, which are of shapes (n,) and (n, n) for n features, 1 or more")
    if not bool(mean.isfinite().all() and covariance.isfinite().all()):
        raise UserError(f"{uri}: mu{suffix} or sigma{suffix} is not finite; fetch the file or compute it again")
    # A feature that is the same in all images may have a variance a little below 0, by the rounding of the squares that cancel.
    too_low = covariance.diagonal() < -1e-6 * (1 + mean.square())
    if bool(too_low.any()) or not torch.allclose(covariance, covariance.T, rtol=1e-3, atol=1e-6):
        raise UserError(f"{uri}: sigma{suffix} is no covariance: it has negative variances, or is not symmetric")
    return FeatureStatistics(mean=mean, covariance=(covariance + covariance.T) / 2, num_images=num_images)


def import_statistics(foreign_uri: str, out_uri: str, provenance: Provenance) -> ReferenceStatistics:
    """Import external FID statistics, declaring their dataset and extractor.

    Args:
        foreign_uri: EDM's, pytorch-fid's or ADM's npz. The images of an ADM batch are not copied: metrics that compare
            single images read them from this file, so it has to stay where it is.
        out_uri: The `.npz` to write.
        provenance: The data set and the extractor, which the file does not record; see `provenance_of`.

    Raises:
        UserError: The file is no npz with statistics, or it records a provenance of its own; the extractor has another number of features;
            its numbers are not finite, or its covariance can't be of so few images; `out_uri` is no `.npz`, or the file itself.
    """
    if not out_uri.endswith(".npz"):
        raise UserError(f"{out_uri}: the name of a file of statistics ends in .npz; name one that does")
    if storage.is_same(foreign_uri, out_uri):
        raise UserError(f"{out_uri}: is the file that is adopted, which would be overwritten; give another name")
    foreign = load_reference(foreign_uri)
    if foreign.provenance is not None:
        origin = f"{foreign.provenance.data_name}, {foreign.provenance.extractor}"
        raise UserError(f"{foreign_uri} records its provenance already: {origin}; use it as it is")
    if foreign.features.dim != (dim := extractor_traits(provenance.extractor).dim):
        raise UserError(
            f"{foreign_uri} has {foreign.features.dim:,} features, and {provenance.extractor} has {dim:,}; declare the extractor that they "
            "are of, or fetch statistics of this one"
        )
    rank = _rank(foreign.features.covariance)
    if provenance.num_images <= rank:  # it bounds the rank, so that every distance to the statistics would be too large
        raise UserError(
            f"{foreign_uri}: sigma has rank {rank:,}, which takes more than {provenance.num_images:,} images; declare the number of images "
            "that it was computed from"
        )
    features = dataclasses.replace(foreign.features, num_images=provenance.num_images)
    # The whole address, as the statistics may be read from another working directory.
    save_reference(out_uri, features, provenance, spatial=foreign.spatial, images_uri=storage.absolute(foreign.images_uri))
    return load_reference(out_uri)


def _rank(covariance: Tensor) -> int:
    """Return the number of eigenvalues that are above the rounding of float32, in which a file may store the covariance."""
    values = torch.linalg.eigvalsh(covariance)
    return int((values > torch.finfo(torch.float32).eps * covariance.norm()).sum())


def provenance_of(manifest: Manifest, extractor: ExtractorId | FeatureExtractor) -> Provenance:
    """Return the provenance of statistics of all images of a data set in an extractor's features."""
    return Provenance(
        data_name=manifest.name,
        data_digest=manifest.content_digest,
        split=manifest.split,
        image_size=manifest.image_size,
        image_channels=manifest.image_channels,
        resize=manifest.resize,
        num_images=manifest.num_images,
        extractor=extractor.name,
        extractor_sha256=extractor.sha256,
        class_counts=tuple(manifest.class_counts),
    )
