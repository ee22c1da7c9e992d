"""False refusals and detected faults of the golden replay: `python -m benchmarks.golden --model DIR`."""
