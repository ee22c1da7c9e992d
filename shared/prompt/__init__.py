"""A prefix and the bytes of a version.

`prefix` is what every kind of prefix can do, and the form in which it enters a model; `soft_prompt` and `key_values`
are the kinds, `kinds` lists them. `blob` reads and writes the safetensors file of a version, `manifest` the metadata in
it. `lift` computes keys and values from embeddings with a loaded model, `divergence` compares next-token distributions.
Knows torch and the shapes of a model, and no store, job or request: trainer, engine and imports bring the bytes.
"""
