"""The diffusion process of the paper: schedules, posteriors, objectives, samplers. Knows torch and nothing else."""
