"""Checks the results and measures the speed of engine and trainer on a GPU.

`make gpu-check` runs on a machine with torch, transformers, peft, safetensors and pytest, and needs no package index
and no model.
"""

DEVICE = "SOFTPROMPT_GPU_CHECK_DEVICE"
"""The variable that names the device to check."""
