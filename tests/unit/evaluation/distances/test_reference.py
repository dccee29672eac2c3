"""Reference statistics: stored with their provenance, refused if it differs, and readable from other tools."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rounding import U64

from evaluation.distances.frechet import frechet_distance
from evaluation.distances.reference_statistics import (
    BATCH_SIZE,
    Provenance,
    compute_reference,
    import_statistics,
    load_reference,
    moments_of,
    provenance_of,
    reference_name,
)
from evaluation.features.extractors import extractor_id, load_extractor
from evaluation.records import npz
from training.config.errors import UserError
from training.config.presets import preset
from training.data.format.manifest import read_manifest
from training.data.loading.row_groups import iterate


def test_statistics_are_read_back_with_their_provenance(digits_uri: str, tmp_path: Path) -> None:
    extractor = load_extractor("digits-classifier")
    made = compute_reference(f"{digits_uri}/train", extractor, str(tmp_path))
    again = load_reference(made.uri)
    provenance = again.require(
        extractor=extractor, experiment=preset("digits-hybrid-cosine"), manifest=read_manifest(f"{digits_uri}/train")
    )
    assert provenance.num_images == again.features.num_images == 1497
    assert sum(provenance.class_counts) == 1497
    assert provenance.distance_name == "FD(digits-classifier)"
    # In the same batches: float32 features of other batches differ by their rounding.
    features = torch.cat([extractor(images) for _, images, _ in iterate(f"{digits_uri}/train", BATCH_SIZE)])
    covariance, factor = again.features.covariance, again.features.factor
    sums = len(features) * U64 * float(features.double().square().max())
    torch.testing.assert_close(covariance, torch.cov(features.double().T), rtol=0, atol=sums)
    # An eigenvalue, of which none exceeds the trace, errs by d u.
    torch.testing.assert_close(factor @ factor.T, covariance, rtol=0, atol=len(factor) * U64 * float(covariance.trace()))


def test_stored_statistics_are_read_and_not_computed_again(digits_uri: str, tmp_path: Path) -> None:
    extractor = load_extractor("digits-classifier")
    first = compute_reference(f"{digits_uri}/train", extractor, str(tmp_path))
    stored = Path(first.uri)
    assert stored.name == reference_name(read_manifest(f"{digits_uri}/train"), extractor)
    before = stored.stat().st_mtime_ns
    assert compute_reference(f"{digits_uri}/train", extractor, str(tmp_path)).uri == first.uri
    assert stored.stat().st_mtime_ns == before


def test_real_digits_are_nearer_to_the_training_set_than_noise_is(digits_uri: str, tmp_path: Path) -> None:
    extractor = load_extractor("digits-classifier")
    reference = compute_reference(f"{digits_uri}/train", extractor, str(tmp_path))
    held_out, _ = moments_of((images for _, images, _ in iterate(f"{digits_uri}/test", 100)), extractor)
    noise = torch.randint(0, 256, (300, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    noisy, _ = moments_of([noise], extractor)
    assert frechet_distance(reference.features, held_out) * 20 < frechet_distance(reference.features, noisy)


def test_statistics_of_other_data_are_refused_with_the_differences(digits_uri: str, tmp_path: Path) -> None:
    extractor = load_extractor("digits-classifier")
    reference = compute_reference(f"{digits_uri}/train", extractor, str(tmp_path / "train.npz"))
    with pytest.raises(UserError, match="split: 'train', not 'test'"):
        reference.require(extractor=extractor, manifest=read_manifest(f"{digits_uri}/test"))
    other = preset("digits-hybrid-cosine", ["data.image_size=16", "data.name=cifar10", "model.attention_resolutions=[8]"])
    with pytest.raises(UserError, match="data_name: 'digits', not 'cifar10'; image_size: 8, not 16"):
        reference.require(extractor=extractor, experiment=other)
    with pytest.raises(UserError, match=r"split: 'train', not 'test'"):
        compute_reference(f"{digits_uri}/test", extractor, str(tmp_path / "train.npz"))


def test_stored_statistics_of_another_count_are_refused(digits_uri: str, tmp_path: Path) -> None:
    extractor = load_extractor("digits-classifier")
    uri = str(tmp_path / "some.npz")
    assert compute_reference(f"{digits_uri}/train", extractor, uri, num_images=200).features.num_images == 200
    with pytest.raises(UserError, match="statistics of 200 images, not 1,497"):
        compute_reference(f"{digits_uri}/train", extractor, uri)


def _provenance(**changes: object) -> Provenance:
    fields = {
        "data_name": "cifar10",
        "data_digest": "d",
        "split": "train",
        "image_size": 32,
        "image_channels": 3,
        "resize": "none",
        "num_images": 50_000,
        "extractor": "digits-classifier",
        "extractor_sha256": "s",
    }
    return Provenance(**{**fields, **changes})  # type: ignore[arg-type]


def test_foreign_statistics_are_refused_until_their_provenance_is_declared(tmp_path: Path) -> None:
    inception = extractor_id("inception")
    uri = str(tmp_path / "edm.npz")
    np.savez(uri, mu=np.zeros(64, np.float32), sigma=np.eye(64))
    foreign = load_reference(uri)
    assert foreign.provenance is None
    with pytest.raises(UserError, match="do not record their images, extractor and resize"):
        foreign.require(extractor=inception)
    vouched = import_statistics(uri, str(tmp_path / "ours.npz"), _provenance())
    assert vouched.provenance == _provenance()
    assert vouched.features.num_images == 50_000
    with pytest.raises(UserError, match="extractor: 'digits-classifier', not 'inception'"):
        vouched.require(extractor=inception)


def test_statistics_of_another_number_of_features_are_refused_whatever_is_declared(digits_uri: str, tmp_path: Path) -> None:
    extractor = load_extractor("digits-classifier")
    np.savez(tmp_path / "edm.npz", mu=np.zeros(32), sigma=np.eye(32))
    declared = provenance_of(read_manifest(f"{digits_uri}/train"), extractor)
    with pytest.raises(UserError, match=r"edm\.npz has 32 features, and digits-classifier has 64; declare the extractor that they are of"):
        import_statistics(str(tmp_path / "edm.npz"), str(tmp_path / "ours.npz"), declared)
    assert not (tmp_path / "ours.npz").exists()
    reference = dataclasses.replace(load_reference(str(tmp_path / "edm.npz")), provenance=declared)
    with pytest.raises(UserError, match="has 32 features, digits-classifier has 64; take statistics of"):
        reference.require(extractor=extractor)


@pytest.mark.parametrize("count", [-3, 0, 1])
def test_statistics_of_an_impossible_number_of_images_are_refused(count: int, tmp_path: Path) -> None:
    uri = str(tmp_path / "odd.npz")
    np.savez(uri, mu=np.zeros(4), sigma=np.eye(4), num_images=count)
    with pytest.raises(UserError, match=rf"odd\.npz: num_images is {count}, but statistics take 2 images or more; export the file again"):
        load_reference(uri)


@pytest.mark.parametrize("name", ["mu", "sigma"])
def test_statistics_that_are_not_finite_are_refused_by_the_name_of_their_file(name: str, tmp_path: Path) -> None:
    uri, arrays = str(tmp_path / "odd.npz"), {"mu": np.zeros(4), "sigma": np.eye(4)}
    arrays[name].flat[0] = np.nan
    np.savez(uri, **arrays)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"odd\.npz: mu or sigma is not finite; fetch the file or compute it again"):
        load_reference(uri)


def test_fewer_images_than_a_covariance_takes_are_refused_also_where_it_is_stored_in_single_precision(tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((11, 64)) * np.geomspace(1e-2, 1.0, 64)
    uri, out_uri = str(tmp_path / "foreign.npz"), str(tmp_path / "ours.npz")
    np.savez(uri, mu=features.mean(0), sigma=np.cov(features, rowvar=False).astype(np.float32))
    for too_few in (1, 10):
        with pytest.raises(UserError, match=f"sigma has rank 10, which takes more than {too_few} images"):
            import_statistics(uri, out_uri, _provenance(num_images=too_few))
    assert import_statistics(uri, out_uri, _provenance(num_images=11)).features.max_rank == 10
    np.savez(uri, mu=np.zeros(64), sigma=np.full((64, 64), np.nan))
    with pytest.raises(UserError, match="mu or sigma is not finite"):
        import_statistics(uri, out_uri, _provenance())


def test_the_images_of_adopted_statistics_are_found_from_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    np.savez("adm.npz", mu=np.zeros(64), sigma=np.eye(64), arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    import_statistics("adm.npz", "ours.npz", _provenance())
    monkeypatch.chdir(tmp_path / "there")
    assert npz.batch_shape(load_reference("../here/ours.npz").images_uri) == (2, 8, 8, 3)


def test_statistics_are_not_adopted_over_their_own_file_or_under_another_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("edm.npz", mu=np.zeros(64), sigma=np.eye(64))
    before = Path("edm.npz").read_bytes()
    for out in ("edm.npz", "./edm.npz", str(tmp_path / "edm.npz"), (tmp_path / "edm.npz").as_uri()):
        with pytest.raises(UserError, match=r"edm\.npz: is the file that is adopted, which would be overwritten; give another name"):
            import_statistics("edm.npz", out, _provenance())
    for out in ("ours", "ours.json"):
        with pytest.raises(UserError, match=rf"^{out}: the name of a file of statistics ends in \.npz"):
            import_statistics("edm.npz", out, _provenance())
    assert [path.name for path in tmp_path.iterdir()] == ["edm.npz"]
    assert Path("edm.npz").read_bytes() == before


def test_adm_reference_batches_are_read_with_their_spatial_statistics(tmp_path: Path) -> None:
    uri = str(tmp_path / "adm.npz")
    np.savez(uri, mu=np.zeros(4), sigma=np.eye(4), mu_s=np.ones(6), sigma_s=2 * np.eye(6), arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    reference = load_reference(uri)
    assert reference.spatial is not None
    assert reference.spatial.dim == 6
    assert npz.read_images(uri)[0].shape == (2, 3, 8, 8)


def test_other_tools_find_their_mu_and_sigma_in_a_file_of_ours(reference_uri: str) -> None:
    ours = load_reference(reference_uri)
    with np.load(reference_uri) as file:
        np.testing.assert_array_equal(file["mu"], ours.features.mean.numpy())
        np.testing.assert_array_equal(file["sigma"], ours.features.covariance.numpy())


def test_image_batches_are_read_back_with_their_labels(tmp_path: Path) -> None:
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 4, 4)
    uri = str(tmp_path / "samples.npz")
    npz.write_images(uri, images, torch.tensor([7, 1]))
    with np.load(uri) as file:
        assert file["arr_0"].shape == (2, 4, 4, 3)
    again, labels = npz.read_images(uri)
    assert torch.equal(again, images)
    assert labels is not None
    assert labels.tolist() == [7, 1]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": np.zeros((2, 4, 4, 3), np.float32)}, "arr_0 is float32"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, "none of them 0"),
        ({"x": np.zeros(1)}, "arr_0 can't be read"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "arr_1": np.zeros(3)}, r"labels \(arr_1\) do not fit 2 images"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "arr_1": np.array(["a.png", "b.png"])}, "arr_1 is <U5; labels are whole numbers"),
    ],
)
def test_a_file_without_a_batch_of_images_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    uri = str(tmp_path / "bad.npz")
    npz.write_arrays(uri, arrays)
    with pytest.raises(UserError, match=message):
        npz.read_images(uri)


def test_a_file_without_statistics_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(UserError, match="is not an npz file, or it is cut short"):
        load_reference(str(path))
    np.savez(path, mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(UserError, match="not a mean and its covariance"):
        load_reference(str(path))


@pytest.mark.parametrize("damage", ["offset of the directory", "header of the array", "method of the compression"])
def test_a_damaged_file_is_refused_whatever_its_damage(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3), arr_0=np.zeros((2, 4, 4, 3), np.uint8), arr_1=np.zeros(2))
    data = bytearray(path.read_bytes())
    if damage == "offset of the directory":
        data[-6:-2] = (1 << 24).to_bytes(4, "little")
    else:
        wanted, new, skipped = (b"}", b" ", 0) if damage == "header of the array" else (b"PK\x01\x02", b"\x09", 10)
        start = -1
        while (start := data.find(wanted, start + 1)) >= 0:
            data[start + skipped] = new[0]
    path.write_bytes(data)
    for read in (npz.read_images, load_reference):
        with pytest.raises(UserError, match=r"bad.npz"):
            read(str(path))


def test_other_arrays_beside_the_statistics_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "more.npz"
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3), paths=np.array(["a.png", None], dtype=object))
    assert load_reference(str(path)).features.dim == 3


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pickled.npz"
    np.savez(path, mu=np.array([{"a": 1}], dtype=object), sigma=np.eye(1))
    with pytest.raises(UserError, match="not an npz file of plain arrays"):
        load_reference(str(path))


def test_provenance_survives_json() -> None:
    provenance = _provenance(class_counts=(1, 2))
    assert Provenance.from_dict(json.loads(json.dumps(provenance.to_dict()))) == provenance


def test_a_data_set_with_too_few_images_is_named(digits_uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="/train: statistics take 2 images or more, and there is 1; prepare more of them"):
        compute_reference(f"{digits_uri}/train", load_extractor("digits-classifier"), str(tmp_path), num_images=1)
    assert list(tmp_path.iterdir()) == []
