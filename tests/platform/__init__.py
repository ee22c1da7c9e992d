"""The walk of docs/platform.md as a script: `python -m tests.platform`. It starts real processes and takes minutes."""
