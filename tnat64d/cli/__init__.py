"""The command line: `main` and a module for each family of commands."""
