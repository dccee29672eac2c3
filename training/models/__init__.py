"""The UNet of supplement section 1, its upsampler and the averages of its weights. Knows torch, training.config and training.diffusion."""
