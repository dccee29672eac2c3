"""Ways to run a step: in its own pod, on a Ray cluster that KubeRay makes, or on a standing one. Imports no step."""
