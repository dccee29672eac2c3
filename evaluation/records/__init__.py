"""Data and file formats that the rest of evaluation shares: protocol card, result, npz, PNG grids, devices."""
