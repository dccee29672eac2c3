"""The command line `iddpm`, one file a group of commands. Each command imports what it needs when it runs."""
