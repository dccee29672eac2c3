"""The command line `iddpm`: a folder for each kind of work. Each command imports what it needs when it runs."""
