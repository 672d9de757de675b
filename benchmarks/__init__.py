"""Speed, measured: `python -m benchmarks.<name>` prints a table and writes results/<name>-<machine>.csv beside this."""
