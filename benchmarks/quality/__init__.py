"""Compares the recipe with the untuned model and PEFT: `python -m benchmarks.quality --model DIR --data DIR`."""
