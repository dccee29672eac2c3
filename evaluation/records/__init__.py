"""Data and file formats of evaluation: protocol card, result, run directory, npz, PNG grids, devices. Every other room imports it."""
