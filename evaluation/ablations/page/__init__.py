"""The page of an ablation: table, figures and sample grids; and the gallery of all pages."""
