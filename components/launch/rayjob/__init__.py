"""A step on a Ray cluster that KubeRay makes for it. Imported by `components.launch.run`; the reaper reads its status."""
