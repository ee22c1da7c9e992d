"""The compiled kernels beside torch's own: `python -m benchmarks.kernels`."""
