"""What a GPU must compute correctly, and how fast it does: `make gpu-check`.

Runs on a machine with torch, transformers, peft, safetensors and pytest, and needs no package index and no model.
"""

DEVICE = "SOFTPROMPT_GPU_CHECK_DEVICE"
"""The variable that names the device to check."""
