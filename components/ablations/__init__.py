"""The steps of an ablation: plan, train and measure each trial, report, close. Components and `pipelines.local` call them."""
