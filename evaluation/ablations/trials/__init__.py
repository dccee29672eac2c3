"""What is measured of an ablation's trials, and the record that each leaves."""
