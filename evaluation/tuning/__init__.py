"""A tuning: the fields that are searched, what Optuna suggests next, when a trial is pruned, and the page. Steps import it."""
