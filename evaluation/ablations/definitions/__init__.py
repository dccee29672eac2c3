"""The paper's ablations and users' grids, the request for one, and its cost. A client imports this without torch."""
