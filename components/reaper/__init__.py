"""Clean up after runs that have ended: RayJobs, MLflow runs, and what the webhook was not told. A CronJob runs it; nothing imports it."""
