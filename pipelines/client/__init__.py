"""Kubeflow Pipelines from outside: connect, submit, follow, list and schedule runs."""
