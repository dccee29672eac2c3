"""What the command line can do, grouped by what it is about. Each command imports what it needs when it runs."""
