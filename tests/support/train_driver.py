"""A training step in a process of its own, for tests that kill it: argv[1] is JSON of `train_run`'s arguments."""

import json
import sys

from components.steps.train import train_run

if __name__ == "__main__":
    print(train_run(**json.loads(sys.argv[1])), flush=True)
