"""Ablations: definitions, trials and their measures, claims of the paper, and the page. `components.ablations` runs them."""
