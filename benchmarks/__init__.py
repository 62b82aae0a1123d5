"""Programs that measure, and print what they measured as JSON lines. `python -m benchmarks.NAME --help`."""
