"""Compares the compiled kernels with torch's: `python -m benchmarks.kernels`."""
