"""Compares prompt tuning with the shared prefix with PEFT: `python -m benchmarks.train --model DIR`."""
