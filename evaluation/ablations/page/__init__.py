"""The page of an ablation: table, figures, sample grids, and the gallery of all pages."""
