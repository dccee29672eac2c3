"""Addresses of services: a password in one is refused, since addresses are shown."""

from __future__ import annotations

import os
import sys

import pytest

from pipelines.cli import main as cli
from pipelines.doctor.findings import FAILURE
from pipelines.doctor.services import check_bucket, check_mlflow
from training import storage
from training.config.addresses import contains_password, public_links, without_passwords
from training.tracking import client as mlflow_client

WITH_PASSWORD = [
    "http://me:s3cr3t@host:9000",
    "me:s3cr3t@host",
    "http://me:s3cr3t@host:port/path",
    "http://me:x@s3cr3t@host:9000/path",
    "http://me:s3cr3t/s3cr3t@host:9000",
    "me:s3cr3t/s3cr3t@host:9000",
    "http://me:9s3cr3t/s3cr3t@host",
    "http://me:/s3cr3t@host",
    "http://me:x?s3cr3t#s3cr3t@host",
    "http://me:s3cr3t@[::1]:9000",
    "http://me:s3cr3t/s3cr3t@[::1]:9000/path",
    "http://me:s3cr3t@host/?a=http://b",
    "http://s3cr3t@host",
]


@pytest.mark.parametrize("address", WITH_PASSWORD)
def test_an_address_with_a_password_is_refused_in_words_that_do_not_show_it(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(storage.StorageError, match="AWS_ENDPOINT_URL must not") as of_s3:
        storage.read_bytes("s3://bucket/key")
    with pytest.raises(mlflow_client.TrackingError, match="MLFLOW_TRACKING_PASSWORD") as of_mlflow:
        mlflow_client.tracking_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    monkeypatch.setenv("IDDPM_MLFLOW_PUBLIC_URL", address)
    for ask in (mlflow_client.connect, mlflow_client.public_uri):
        with pytest.raises(mlflow_client.TrackingError, match="IDDPM_MLFLOW_PUBLIC_URL must not") as of_links:
            ask()
    assert "s3cr3t" not in f"{of_s3.value} {of_mlflow.value} {of_links.value}"


@pytest.mark.parametrize("address", WITH_PASSWORD)
def test_the_doctor_does_not_show_it_either(address: str) -> None:
    settings = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "key", "MLFLOW_TRACKING_URI": address}
    found = [*check_bucket(settings, "s3://bucket", port_forward=False), *check_mlflow(settings, port_forward=False)]
    assert [finding.state for finding in found] == [FAILURE, FAILURE]
    assert "s3cr3t" not in repr(found)


@pytest.mark.parametrize(
    "address",
    [
        "http://host:9000",
        "host:9000",
        "https://host/a@b",
        "https://host?who=a@b",
        "",
        "http://host:9000/a@b",
        "http://host:9000?who=a@b",
        "host:9000/a@b",
        "http://[::1]:9000/a@b",
        "[::1]:9000/a@b",
        "http://[fe80::1%25eth0]/a@b",
        "http://host/?a=http://b:9000/c@d",
        "https://host/a:b@c",
    ],
)
def test_an_at_sign_elsewhere_is_no_password(address: str) -> None:
    assert not contains_password(address)
    assert without_passwords(address) == address


@pytest.mark.parametrize(
    "uri",
    [
        "s3://me:s3cr3t@bucket/x",
        "s3://me:s3cr3t/s3cr3t@bucket/x",
        "s3://me:9/s3cr3t@bucket/x",
        "s3://me:x@s3cr3t@bucket/x",
        "s3://me:s3cr3t@",
        "S3://me:s3cr3t@bucket/x",
    ],
)
@pytest.mark.parametrize(
    "command",
    [["dataset", "info"], ["preprocess", "digits-hybrid-cosine", "data", "--source"], ["sample"]],
)
def test_a_password_in_an_address_of_data_is_refused_and_not_shown(
    command: list[str], uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(sys, "argv", ["iddpm", *command, uri])
    with pytest.raises(SystemExit):
        cli.main()
    said = "".join(capsys.readouterr())
    assert "://***@" in said
    assert "s3cr3t" not in said


def test_other_text_is_left_as_it_is() -> None:
    text = "http://host:9000/a@b, s3://bucket/a:b@c, models:/digits@champion, host:5000/iddpm@sha256:0"
    assert without_passwords(text) == text
    assert without_passwords(f"http://me:p@ss@host:9000/a@b of {text}") == f"http://***@host:9000/a@b of {text}"


def test_a_steps_own_address_of_mlflow_goes_before_one_that_a_plugin_injects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://plugin:5000")
    monkeypatch.setenv("IDDPM_MLFLOW_TRACKING_URI", "http://own:5000/")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "plugin")
    monkeypatch.setenv("IDDPM_MLFLOW_TRACKING_USERNAME", "own")
    assert mlflow_client.tracking_uri() == "http://own:5000"
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://plugin:5000", "to ask for the address changes nothing"
    mlflow_client.connect()  # MLflow's client reads its own variables
    assert (os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_TRACKING_USERNAME"]) == ("http://own:5000/", "own")


def test_links_have_the_address_that_people_use_and_none_that_only_the_cluster_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = "http://mlflow.iddpm.svc.cluster.local:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", inside)
    monkeypatch.setenv("IDDPM_MLFLOW_PUBLIC_URL", "")
    assert public_links({"MLflow": mlflow_client.public_uri(), "Data": "s3://iddpm/data"}) == {"Data": "s3://iddpm/data"}
    monkeypatch.setenv("IDDPM_MLFLOW_PUBLIC_URL", "https://mlflow.example.com/")
    assert public_links({"MLflow": mlflow_client.public_uri()}) == {"MLflow": "https://mlflow.example.com"}
    assert mlflow_client.tracking_uri() == inside
