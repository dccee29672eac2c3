"""The proxy for an address."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import fake_kubernetes
import pytest
import urllib3

from components.cluster.connection import KubernetesError
from components.cluster.kubernetes_api import KubernetesApi
from components.cluster.proxies import Proxy, ProxySettingsError, pool_for, proxy_for


@pytest.fixture(autouse=True)
def no_proxy_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY", "all_proxy"])
def test_the_environment_names_the_proxy(monkeypatch, variable):
    assert proxy_for("https://example.com") is None
    monkeypatch.setenv(variable, "http://proxy:3128")
    assert proxy_for("https://example.com") == Proxy("http://proxy:3128", {})
    assert (proxy_for("http://example.com") is None) == (variable != "all_proxy")


@pytest.mark.parametrize(
    ("url", "no_proxy"),
    [
        ("https://10.1.2.3:6443", "10.0.0.0/8"),
        ("https://kfp.example.com", ".example.com"),
        ("https://kfp.example.com", "*"),
        ("https://127.0.0.1:6443", ""),
        ("https://[::1]:6443", ""),
        ("https://mlflow.iddpm.svc:5000", ""),
        ("https://mlflow.iddpm.svc.cluster.local:5000", ""),
    ],
)
def test_addresses_in_no_proxy_on_this_machine_or_in_the_cluster_take_no_proxy(monkeypatch, url, no_proxy):
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", no_proxy)
    assert proxy_for(url) is None


def test_a_password_goes_into_the_header_and_not_into_the_address(monkeypatch):
    monkeypatch.setenv("https_proxy", "me:s%40cret@proxy:3128")
    found = proxy_for("https://example.com")
    assert found is not None
    assert found.url == "http://proxy:3128"
    assert base64.b64decode(found.headers["proxy-authorization"].removeprefix("Basic ")) == b"me:s@cret"


def test_another_kind_of_proxy_is_refused_without_its_password(monkeypatch):
    monkeypatch.setenv("all_proxy", "socks5://me:secret@proxy:1080")
    with pytest.raises(ProxySettingsError, match=r"socks5://proxy:1080 is neither http:// nor https://") as caught:
        proxy_for("https://example.com")
    assert "secret" not in str(caught.value)


def test_a_connection_pool_uses_the_proxy(monkeypatch):
    assert type(pool_for("http://example.com")) is urllib3.PoolManager
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    assert isinstance(pool_for("http://example.com"), urllib3.ProxyManager)


def _leads_to(kubeconfig: Path, **cluster: str) -> None:
    known = json.loads(kubeconfig.read_text())
    known["clusters"][0]["cluster"] |= {"server": "http://kubernetes.invalid:6443", **cluster}
    kubeconfig.write_text(json.dumps(known))


def test_kubernetes_is_reached_by_the_environments_proxy_and_not_by_one_that_no_proxy_rules_out(tmp_path, monkeypatch):
    with fake_kubernetes.serve(tmp_path) as (fake, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        _leads_to(kubeconfig)
        monkeypatch.setenv("http_proxy", fake.url)  # which answers like the server behind it
        assert KubernetesApi(fake_kubernetes.NAMESPACE, patience_seconds=0).rayjobs("") == []
        monkeypatch.setenv("no_proxy", "kubernetes.invalid")
        with pytest.raises(KubernetesError, match="did not list RayJobs"):
            KubernetesApi(fake_kubernetes.NAMESPACE, patience_seconds=0).rayjobs("")


def test_the_kubeconfigs_own_proxy_goes_before_the_environments(tmp_path, monkeypatch):
    with fake_kubernetes.serve(tmp_path) as (fake, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        _leads_to(kubeconfig, **{"proxy-url": fake.url})
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        assert KubernetesApi(fake_kubernetes.NAMESPACE, patience_seconds=0).rayjobs("") == []
