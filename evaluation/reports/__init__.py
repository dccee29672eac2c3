"""The page of an evaluation: figures, tables, and the paper's numbers beside ours."""
