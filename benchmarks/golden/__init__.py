"""Are sound prompts ever refused by the golden replay, and which faults does it find: `python -m benchmarks.golden --model DIR`."""
