"""The steps of a sweep: plan, train and measure each trial, report, close."""
