"""The Kubernetes API, Workflows, and the names and types that the cluster knows. Imports no step and no launcher."""
