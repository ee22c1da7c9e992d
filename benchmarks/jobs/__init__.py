"""Benchmarks of the job service: `python -m benchmarks.jobs`."""
