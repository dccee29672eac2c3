"""The client of Kubeflow Pipelines: connect, submit, follow, list and schedule runs. For the command line and the doctor."""
