#!/usr/bin/env bash
# From nothing to a finished run on this machine: the steps of k8s/README.md, with kind and Docker. Run it by `make kind`.
# It can be run again after an interruption: what is there already stays as it is. It uses a kubeconfig of its own, so no other
# cluster is touched. IDDPM_IMAGE names an image that is built already.
set -euo pipefail
cd "$(dirname "$0")/.."

given=${IDDPM_IMAGE:-}
image=${given:-iddpm-pipelines:0.1.0}
unset IDDPM_IMAGE  # the nodes have the image by the name in the manifests, which doctor and submit take without it
mkdir -p .iddpm
export KUBECONFIG=$PWD/.iddpm/kind.kubeconfig

fail() { echo "kind: $1" >&2; exit 1; }
step() { printf '\n%s  %s\n' "$(date +%H:%M:%S)" "$1"; }

missing=
for tool in docker kind kubectl helm git openssl; do
  command -v "$tool" >/dev/null || missing="$missing $tool"
done
[ -z "$missing" ] || fail "not installed:$missing (kind: https://kind.sigs.k8s.io, kubectl: https://kubernetes.io/docs/tasks/tools, helm: https://helm.sh, docker: https://docs.docker.com/engine/install)"
docker info >/dev/null 2>&1 || fail "docker does not answer; start it, or add yourself to the group docker"
[ -x .venv/bin/iddpm ] || fail ".venv/bin/iddpm is missing; run 'make setup'"
cores=$(docker info --format '{{.NCPU}}')
memory_gb=$(docker info --format '{{.MemTotal}}' | awk '{print int($1 / 1073741824)}')
[ "$cores" -ge 4 ] || echo "kind: docker has $cores cores; 4 are needed, so steps may wait for room" >&2
[ "$memory_gb" -ge 12 ] || echo "kind: docker has $memory_gb GiB of memory; 12 are needed, so steps may wait for room" >&2
if ! kind get clusters 2>/dev/null | grep -x iddpm >/dev/null; then  # a cluster that is there has taken its share already
  root=$(docker info --format '{{.DockerRootDir}}')
  [ -d "$root" ] || root=.  # Docker may run in a virtual machine
  free_gb=$(df -Pk "$root" | awk 'NR == 2 {print int($4 / 1048576)}')
  [ "$free_gb" -ge 30 ] || fail "$free_gb GB of disk are free in $root; the images of the project and of Kubeflow Pipelines need about 30 GB"
fi
echo "This takes about half an hour, 4 cores, 16 GB of memory and 30 GB of disk, and downloads about 8 GB."

step "1. A cluster"
kind get clusters 2>/dev/null | grep -x iddpm >/dev/null || kind create cluster --name iddpm
kind export kubeconfig --name iddpm && kubectl wait --for=condition=Ready node --all --timeout=5m ||
  fail "the cluster does not get ready; an interruption may have left half of it: kind delete cluster --name iddpm, then the same command makes it again"

step "2. The project's image"
# Without a given image it is built each time, as one of another commit refuses the steps; what has not changed is in docker's cache.
{ [ -n "$given" ] && docker image inspect "$image" >/dev/null 2>&1; } || ENGINE=docker make image IMAGE="$image"
docker tag "$image" iddpm-pipelines:0.1.0  # the name in the manifests
kind load docker-image iddpm-pipelines:0.1.0 --name iddpm

step "3. KubeRay"
helm repo add kuberay https://ray-project.github.io/kuberay-helm/ --force-update
helm status kuberay-operator --namespace kuberay-system >/dev/null 2>&1 ||
  helm install kuberay-operator kuberay/kuberay-operator --version 1.7.0 --namespace kuberay-system --create-namespace

step "4. Kubeflow Pipelines"
kubectl apply -k "github.com/kubeflow/pipelines/manifests/kustomize/cluster-scoped-resources?ref=2.17.0"
kubectl wait --for condition=established --timeout=60s crd/applications.app.k8s.io
kubectl label namespace kubeflow pod-security.kubernetes.io/warn=restricted pod-security.kubernetes.io/audit=restricted --overwrite

step "5. Secrets"
kubectl get namespace iddpm >/dev/null 2>&1 || kubectl create namespace iddpm --save-config
key_id=iddpm; key=$(openssl rand -hex 24)
if kubectl -n iddpm get secret iddpm-s3 >/dev/null 2>&1; then  # SeaweedFS knows these; both namespaces must have the same
  key_id=$(kubectl -n iddpm get secret iddpm-s3 -o 'go-template={{.data.AWS_ACCESS_KEY_ID | base64decode}}')
  key=$(kubectl -n iddpm get secret iddpm-s3 -o 'go-template={{.data.AWS_SECRET_ACCESS_KEY | base64decode}}')
fi
for namespace in iddpm kubeflow; do
  kubectl -n $namespace get secret iddpm-s3 >/dev/null 2>&1 ||
    kubectl -n $namespace create secret generic iddpm-s3 \
      --from-literal=AWS_ACCESS_KEY_ID="$key_id" --from-literal=AWS_SECRET_ACCESS_KEY="$key"
done
kubectl -n iddpm get secret iddpm-mlflow-database >/dev/null 2>&1 ||
  kubectl -n iddpm create secret generic iddpm-mlflow-database --from-literal=password="$(openssl rand -hex 24)"

step "6. Everything (nodes now pull the images of Kubeflow Pipelines)"
kubectl apply -k k8s/overlays/kind
kubectl apply -k k8s/overlays/kfp
kubectl -n iddpm rollout status statefulset/mlflow-postgres --timeout=10m
kubectl -n iddpm rollout status deployment/mlflow --timeout=10m
kubectl -n kubeflow wait --for=condition=Available deployment --all --timeout=15m
.venv/bin/iddpm doctor --port-forward

step "7. A run"
.venv/bin/iddpm submit train --port-forward

cat <<END

The cluster is up. In this folder:
  export KUBECONFIG=$KUBECONFIG
  kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80     # Kubeflow Pipelines: http://localhost:8080
  kubectl -n iddpm port-forward svc/mlflow 5000:5000              # MLflow: http://localhost:5000
  kind delete cluster --name iddpm                                # deletes all of it
END
