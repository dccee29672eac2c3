"""The tables of presets, by family; `training.config.presets` joins them and is what others import."""
