"""The `shoal` command. Kept empty: a worker imports `shoal.cli.target` and nothing else of it."""
