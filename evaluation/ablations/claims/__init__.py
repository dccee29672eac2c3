"""The paper's claims, and what the numbers of an ablation say of them."""
