"""Clean up after runs that have ended: RayJobs and MLflow runs. A CronJob runs it; nothing imports it."""
