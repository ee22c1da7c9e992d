"""The frozen base model: identity, loading, and checks that it accepts soft prompts. Imports torch.

`base_model` loads a directory or a hub id by `options`; `weights`, `precision` and `safetensors_file` read its files,
`tokenizer_file` compares tokenizers with theirs; `hub` asks whether the hub answers; `fingerprint` is the digest that
versions name their model by; `causality` checks that a model reads embeddings and attends only to the left, and
`attention_calls` what its layers ask of their attention. Knows transformers, and no prompt, job or request. Its data
are a model's files, the settings, and the operator's file of base models (`models_file`).
"""
