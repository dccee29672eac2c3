"""The evaluation whose numbers are reported: settle and check what it will do, then do it."""
