"""Commands about experiments and trained models: show, sample, score, compare, serve, export."""
