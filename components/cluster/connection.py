"""Connect to the Kubernetes API: by the pod's service account, or outside a cluster by the kubeconfig."""

from __future__ import annotations

import os
from pathlib import Path

from kubernetes import client, config

from components.cluster.proxies import ProxySettingsError, proxy_for
from training.config.errors import in_one_line

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class KubernetesError(RuntimeError):
    """The API refused, or did not answer for too long; one line that names the remedy."""


class KubernetesAwayError(KubernetesError):
    """The API did not answer for too long; it may do so later."""


def in_cluster() -> bool:
    """Return True in a pod, by the environment that Kubernetes gives every pod."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST")) and not os.environ.get("KUBECONFIG")


def current_namespace() -> str:
    """Return the namespace of this pod, or of the kubeconfig's current context; "default" where neither has one."""
    try:
        if in_cluster():
            return _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
        _, context = config.list_kube_config_contexts(_kubeconfig())
        return str(context["context"].get("namespace") or "default")
    except Exception as error:  # a broken kubeconfig raises errors of many types
        raise _no_cluster(error) from error


def connect() -> client.ApiClient:
    """Connect, with the token that is valid now; raise KubernetesError without a service account or a kubeconfig."""
    configuration = client.Configuration()
    try:
        if in_cluster():
            config.load_incluster_config(client_configuration=configuration)
        else:
            config.load_kube_config(_kubeconfig(), client_configuration=configuration)
            if proxy := proxy_for(configuration.host, named=_proxy_of_kubeconfig()):
                configuration.proxy, configuration.proxy_headers = proxy
    except ProxySettingsError:
        raise
    except Exception as error:  # the same, and broken certificates
        raise _no_cluster(error) from error
    configuration.retries = 0  # the caller repeats requests; it knows which may be sent twice
    return client.ApiClient(configuration)


def _no_cluster(error: Exception) -> KubernetesError:
    return KubernetesError(
        f"no cluster is known here: {in_one_line(error, 300)}; set KUBECONFIG, or run the step in a pod of the cluster "
        "(ray_mode local needs none)"
    )


def _kubeconfig() -> str:
    """Return the path that the environment has now; the client library reads the variable only at its import."""
    return os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())


def _proxy_of_kubeconfig() -> str:
    """Return the `proxy-url` of the current context's cluster, which the client library leaves unread."""
    kubeconfig = config.kube_config.KubeConfigMerger(_kubeconfig()).config
    context = kubeconfig["contexts"].get_with_name(kubeconfig["current-context"])["context"]
    return str(kubeconfig["clusters"].get_with_name(context["cluster"])["cluster"].safe_get("proxy-url") or "")
