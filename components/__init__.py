"""Kubeflow components, one file each: a thin edge around training and evaluation."""
