"""The model, its data and its training: the base layer, which imports none of the other packages."""
