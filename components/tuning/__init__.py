"""A tuning's steps: its trials one after the other, its report and its close. Components and `pipelines.local` call them."""
