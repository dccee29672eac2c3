"""Where the work of a step is done: in its own pod, on a RayJob, or on a standing Ray cluster. Imports no step."""
