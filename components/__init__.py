"""Kubeflow components, one file each: a thin edge around training and evaluation."""

import os
import sys

if os.environ.get("_KFP_RUNTIME") == "true":  # in KFP's executor of a step, and in the step's own processes
    from components.container.same_version import require_same_version

    require_same_version(sys.argv)
