"""Accuracy of the recipe beside PEFT's documented recipes on product reviews: `python -m benchmarks.quality --model DIR`."""
