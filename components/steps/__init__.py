"""The work of each pipeline step, as functions that know no Kubeflow. For the component files, components.ablations and pipelines."""
