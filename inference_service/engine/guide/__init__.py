"""Guided generation: compiles the form that an answer must have, and computes which tokens may come next.

`compiler` compiles a guide with llguidance for the model's vocabulary, `matcher` follows one answer under a guide,
`mask_workers` computes masks beside the step. Knows tokenizers and llguidance, and no models, rows or requests. Guides
come from `inference_service.guides`, which caches them; masks go to `run.sampler`.
"""
