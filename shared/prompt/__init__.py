"""A soft prompt and the bytes of a version: the matrix, its manifest, its safetensors file."""
