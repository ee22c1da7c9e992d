"""The serving benchmark: `python -m benchmarks.serve --model DIR [--vllm-python PYTHON]`."""
