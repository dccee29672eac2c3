"""Start the training loop: under Ray Train, for the train step; in this process; or with torch alone, to measure a speed."""
