"""Quality of the recipe beside the untuned model and PEFT: `python -m benchmarks.quality --model DIR --data DIR`."""
