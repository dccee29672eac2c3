"""What is taken of an ablation's trials, and the report that is made of it."""
