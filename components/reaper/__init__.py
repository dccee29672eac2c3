"""End what outlived its run: RayJobs and MLflow runs."""
