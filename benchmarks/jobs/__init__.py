"""The job service measured: `python -m benchmarks.jobs`."""
