"""Choices of platform teams: the Gateway API, S3 without keys, several users, External Secrets, and the backup of MLflow's database."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.compile import PIPELINES, compiled

_ROOT = Path(__file__).resolve().parents[3]
_K8S = _ROOT / "k8s"


def _built(folder: Path) -> list[dict[str, Any]]:
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@functools.cache
def _overlay(name: str) -> list[dict[str, Any]]:
    return _built(_K8S / "overlays" / name)


def _one(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def _with_components(tmp_path: Path, *components: str) -> list[dict[str, Any]]:
    overlay = {
        "resources": [os.path.relpath(_K8S / "base", tmp_path)],
        "components": [os.path.relpath(_K8S / "components" / each, tmp_path) for each in components],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    return _built(tmp_path)


# -- the way in ----------------------------------------------------------------------------------------------------------


def test_mlflow_is_reached_by_the_gateway_api_in_place_of_an_ingress(tmp_path: Path) -> None:
    objects = _with_components(tmp_path, "cluster", "gateway", "mlflow-auth")
    assert not [each for each in objects if each["kind"] == "Ingress"]
    route = _one(objects, "HTTPRoute", "mlflow")["spec"]
    service = _one(objects, "Service", "mlflow")
    assert route["rules"][0]["backendRefs"] == [{"name": "mlflow", "port": service["spec"]["ports"][0]["port"]}]
    (container,) = _one(objects, "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
    (allowed,) = [each["value"] for each in container["env"] if each["name"] == "MLFLOW_SERVER_ALLOWED_HOSTS"]
    assert route["hostnames"][0] in allowed.split(",")
    source = _one(objects, "NetworkPolicy", "ingress-to-mlflow")["spec"]["ingress"][0]["from"][0]["namespaceSelector"]["matchLabels"]
    assert source == {"kubernetes.io/metadata.name": route["parentRefs"][0]["namespace"]}


def test_people_pass_the_proxy_by_a_gateway_too(tmp_path: Path) -> None:
    objects = _with_components(tmp_path, "cluster", "gateway", "oidc-proxy")
    assert _one(objects, "HTTPRoute", "mlflow")["spec"]["rules"][0]["backendRefs"] == [{"name": "oidc-proxy", "port": 4180}]
    policy = _one(objects, "NetworkPolicy", "ingress-to-mlflow")["spec"]
    assert policy["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "oidc-proxy"}
    assert policy["ingress"][0]["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "gateway-system"}


def test_the_proxys_image_names_a_registry_that_must_be_chosen() -> None:
    (container,) = _one(_overlay("cluster-oidc"), "Deployment", "oidc-proxy")["spec"]["template"]["spec"]["containers"]
    assert container["image"].startswith("registry.example.com/")


# -- S3 without keys -----------------------------------------------------------------------------------------------------


def test_without_keys_every_pod_that_reaches_s3_has_an_identity_and_needs_no_secret(tmp_path: Path) -> None:
    objects = _with_components(tmp_path, "cluster", "ingress", "keyless-s3")
    identities = {each["metadata"]["name"] for each in objects if each["kind"] == "ServiceAccount" and each["metadata"].get("annotations")}
    assert identities == {"mlflow", "mlflow-backup", "iddpm-gc", "iddpm-ray", "iddpm-reaper"}
    for each in objects:
        for reference in _secrets(each):
            assert reference.get("name") != "iddpm-s3" or reference.get("optional"), each["metadata"]["name"]


def test_without_keys_pods_exchange_their_role_at_an_address_that_is_not_that_of_s3(tmp_path: Path) -> None:
    """Given AWS_ENDPOINT_URL alone boto3 sends S3's address its requests to STS."""
    objects = _with_components(tmp_path, "cluster", "ingress", "keyless-s3")
    (config, other) = [each["data"] for each in objects if each["metadata"]["name"] == "iddpm-services"]
    assert config == other
    for has_sts in (False, True):
        given = {name: value for name, value in config.items() if name.startswith("AWS_") and (has_sts or not name.endswith("_STS"))}
        code = "import botocore.session as s; print(s.get_session().create_client('sts').meta.endpoint_url)"
        environment = {"PATH": os.environ["PATH"], "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", **given}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        assert (done.stdout.strip() == config["AWS_ENDPOINT_URL"]) != has_sts
    (cronjob,) = [each for each in objects if each["metadata"]["name"] == "iddpm-reaper" and each["kind"] == "CronJob"]
    (reaper,) = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert {"configMapRef": {"name": "iddpm-services"}} in reaper["envFrom"]


def _secrets(thing: Any) -> list[dict[str, Any]]:
    """All references to Secrets in an object."""
    if isinstance(thing, list):
        return [found for each in thing for found in _secrets(each)]
    if not isinstance(thing, dict):
        return []
    own = [value for name, value in thing.items() if name in ("secretRef", "secretKeyRef")]
    return own + [found for value in thing.values() for found in _secrets(value)]


def test_without_keys_kubeflow_pipelines_takes_the_pods_identity(tmp_path: Path) -> None:
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "pipeline-runner"}}
    launcher = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kfp-launcher"}, "data": {"providers": "s3: {}"}}
    (tmp_path / "kfp.yaml").write_text(yaml.safe_dump_all([account, launcher]))
    component = os.path.relpath(_K8S / "components" / "keyless-s3", tmp_path)
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["kfp.yaml"], "components": [component]}))
    objects = _built(tmp_path)
    assert "eks.amazonaws.com/role-arn" in _one(objects, "ServiceAccount", "pipeline-runner")["metadata"]["annotations"]
    providers = yaml.safe_load(_one(objects, "ConfigMap", "kfp-launcher")["data"]["providers"])
    assert providers["s3"]["default"]["credentials"] == {"fromEnv": True}


# -- several users -------------------------------------------------------------------------------------------------------


def test_what_runs_need_can_be_put_into_a_profiles_namespace() -> None:
    objects = _overlay("profile")
    assert {each["metadata"]["namespace"] for each in objects} == {"team-a"}
    (subject,) = _one(objects, "RoleBinding", "iddpm-rayjobs")["subjects"]
    assert subject == {"kind": "ServiceAccount", "name": "default-editor", "namespace": "team-a"}
    (reaper,) = _one(objects, "RoleBinding", "iddpm-reaper")["subjects"]
    assert reaper["namespace"] == "team-a"
    pod = _one(objects, "CronJob", "iddpm-reaper")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "iddpm-pipelines:0.1.0"


def test_in_a_profiles_namespace_jobs_have_no_sidecar_and_s3_is_that_of_the_cluster() -> None:
    objects = _overlay("profile")
    for name in ("iddpm-reaper", "iddpm-gc"):
        template = _one(objects, "CronJob", name)["spec"]["jobTemplate"]["spec"]["template"]
        assert template["metadata"]["annotations"] == {"sidecar.istio.io/inject": "false"}, name
    of_cluster = [each["data"] for each in _overlay("cluster") if each["metadata"]["name"] == "iddpm-services"]
    found = _one(objects, "ConfigMap", "iddpm-services")["data"]
    for data in of_cluster:
        assert all(found[name] == data[name] for name in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"))
    assert "svc.cluster.local" not in found["AWS_ENDPOINT_URL"]


@pytest.mark.parametrize("policy", ["mlflow", "seaweedfs"])
def test_the_namespaces_of_profiles_reach_the_services(policy: str) -> None:
    ingress = _one(_overlay("kind"), "NetworkPolicy", policy)["spec"]["ingress"][0]["from"]
    labels = [each["namespaceSelector"]["matchLabels"] for each in ingress if "namespaceSelector" in each]
    assert {"pipelines.kubeflow.org/enabled": "true"} in labels


# -- the network ---------------------------------------------------------------------------------------------------------


def test_ray_pods_can_fetch_weights_and_data_sets_and_names_are_found_on_every_platform() -> None:
    egress = _one(_overlay("kind"), "NetworkPolicy", "iddpm-ray")["spec"]["egress"]
    anywhere = {port["port"] for rule in egress if "to" not in rule for port in rule["ports"]}
    assert anywhere == {53, 5353, 443}
    (names,) = _one(_overlay("kind"), "NetworkPolicy", "names")["spec"]["egress"]
    assert "to" not in names


# -- Pod Security --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PIPELINES)
def test_steps_lack_nothing_of_the_restricted_level_that_kfp_does_not_set(name: str) -> None:
    """KFP sets seccompProfile, the capabilities and allowPrivilegeEscalation (recorded); the rest comes from us."""
    _, platform = yaml.safe_load_all(compiled(name))
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert [each for each, pod in executors.items() if pod.get("securityContext") != {"runAsNonRoot": True}] == []


# -- External Secrets ----------------------------------------------------------------------------------------------------


def test_the_example_of_external_secrets_makes_secrets_with_the_keys_that_pods_read() -> None:
    templates = {
        each["metadata"]["name"]: set(each["stringData"])
        for path in (_K8S / "secrets").glob("*.yaml")
        for each in yaml.safe_load_all(path.read_text())
    }
    for each in yaml.safe_load_all((_K8S / "examples" / "external-secrets.yaml").read_text()):
        spec = each["spec"].get("externalSecretSpec", each["spec"])
        assert {entry["secretKey"] for entry in spec["data"]} == templates[spec["target"]["name"]]


# -- MLflow's database ---------------------------------------------------------------------------------------------------


def test_the_backup_is_uploaded_under_its_date(tmp_path: Path) -> None:
    pod = _one(_overlay("kind"), "CronJob", "mlflow-backup")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (upload,) = pod["containers"]
    (tmp_path / "mlflow.dump").write_bytes(b"PGDMP")
    environment = {"BACKUP_ROOT_URI": (tmp_path / "bucket").as_uri(), "BACKUP_FILE": str(tmp_path / "mlflow.dump")}
    assert set(environment) < {each["name"] for each in upload["env"]}
    said = subprocess.run(
        [sys.executable, *upload["command"][1:]], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    ).stdout
    (file,) = (tmp_path / "bucket" / "backups").iterdir()
    assert file.name.startswith("mlflow-20")
    assert file.name in said
    assert file.read_bytes() == b"PGDMP"


@pytest.mark.parametrize(("refusals", "asked"), [(0, 1), (3, 4), (100, 60)])
def test_the_backup_waits_for_a_database_that_refuses_a_new_pod_at_first(tmp_path: Path, refusals: int, asked: int) -> None:
    pod = _one(_overlay("kind"), "CronJob", "mlflow-backup")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    programs = {
        "pg_isready": f'echo >>{tmp_path}/asked; [ "$(wc -l <{tmp_path}/asked)" -gt {refusals} ]',
        "pg_dump": f'echo "$@" >{tmp_path}/dumped',
        "sleep": "",
    }
    for name, text in programs.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        program.chmod(0o755)
    subprocess.run(pod["initContainers"][0]["command"], env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=True)
    assert len((tmp_path / "asked").read_text(encoding="utf-8").splitlines()) == asked
    assert (tmp_path / "dumped").read_text(encoding="utf-8").split() == ["--format=custom", "--file=/backup/mlflow.dump"]


def _postgresql_programs() -> Path:
    """Return the folder of the programs of Debian's package postgresql."""
    return max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3])).parent


@pytest.fixture
def database() -> Iterator[Path]:
    """A PostgreSQL with the superuser mlflow and no database of its own, by the folder of its socket. It refuses to run as root."""
    programs = _postgresql_programs()
    user = "postgres" if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # a socket's path must be short
        if user:
            shutil.chown(folder, user)

        def postgres(*words: str) -> None:
            subprocess.run([programs / words[0], "-D", f"{folder}/data", *words[1:]], check=True, stdout=subprocess.DEVNULL, user=user)

        postgres("initdb", "--username=mlflow", "--auth=trust", "--no-sync")
        postgres("pg_ctl", "-o", f"-k {folder} -c listen_addresses=''", "-l", f"{folder}/log", "--wait", "start")
        try:
            yield Path(folder)
        finally:
            postgres("pg_ctl", "-m", "immediate", "stop")


@pytest.mark.postgresql
def test_the_guides_restore_leaves_nothing_of_a_later_release(database: Path, tmp_path: Path) -> None:
    def run(*words: str, database_name: str = "mlflow", stdin: Any = None) -> str:
        environment = {**os.environ, "PGHOST": str(database), "PGUSER": "mlflow", "PGDATABASE": database_name}
        command = [_postgresql_programs() / words[0], *words[1:]]
        return subprocess.run(command, env=environment, stdin=stdin, stdout=subprocess.PIPE, text=True, check=True).stdout

    def sql(text: str) -> str:
        return run("psql", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1", f"--command={text}")

    run("createdb", "mlflow", database_name="postgres")
    sql("create table experiments (id int primary key); insert into experiments values (1)")
    pod = _one(_overlay("kind"), "CronJob", "mlflow-backup")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    dump = tmp_path / "mlflow.dump"
    command = [word.replace("/backup/mlflow.dump", str(dump)) for word in pod["initContainers"][0]["command"]]
    path = f"{_postgresql_programs()}:{os.environ['PATH']}"
    subprocess.run(command, env={"PATH": path, "PGHOST": str(database), "PGUSER": "mlflow", "PGDATABASE": "mlflow"}, check=True)
    sql("create table logged_models (experiment int references experiments (id)); insert into logged_models values (1)")
    (restore,) = re.findall(r"(pg_restore [^<]*) < mlflow.dump", (_K8S / "README.md").read_text())
    with dump.open() as file:
        run(*restore.split(), stdin=file)
    assert sql("select relname from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace").split() == ["experiments"]
    assert sql("select id from experiments").split() == ["1"]


def test_the_database_is_upgraded_with_the_servers_own_address_before_the_server_starts() -> None:
    pod = _one(_overlay("kind"), "Deployment", "mlflow")["spec"]["template"]["spec"]
    (upgrade,) = pod["initContainers"]
    assert upgrade["command"] == ["mlflow", "db", "upgrade", "$(MLFLOW_BACKEND_STORE_URI)"]
    assert upgrade["image"] == pod["containers"][0]["image"]
    address, password = ([each for each in upgrade["env"] if each["name"] == name] for name in ("MLFLOW_BACKEND_STORE_URI", "PGPASSWORD"))
    assert address[0] in pod["containers"][0]["env"]
    assert password[0] in pod["containers"][0]["env"]


@pytest.mark.slow
def test_mlflow_can_upgrade_an_empty_database_and_one_that_is_new(tmp_path: Path) -> None:
    for _ in range(2):
        subprocess.run([sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{tmp_path}/mlflow.db"], check=True)
