"""Files that a node keeps on its disk between runs: a bounded cache, and local copies of archives. For `training.data` only."""
