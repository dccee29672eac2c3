"""What an ablation compares: the paper's ablations, a user's grid, its request and its cost."""
