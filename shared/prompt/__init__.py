"""A prefix and the bytes of a version: its tensors, its manifest, its safetensors file."""
