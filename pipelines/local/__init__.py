"""Run the same pipelines on this machine through kfp.local."""
