"""Prompt tuning by the shared prefix beside PEFT: `python -m benchmarks.train --model DIR`."""
