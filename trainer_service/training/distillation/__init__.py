"""Distillation of a text into a prompt (Cartridges: Eyuboglu et al. 2025, arXiv:2506.06266).

The teacher is the base model with the text in its context. It asks itself questions about the text and answers them
(`self_study`, with the `requests` that lead to questions); the prompt is trained on the teacher's most probable next
tokens, without the text. `continuations` computes the text's keys and values once, `state` keeps a study in
checkpoints, `outcome` reports what the prompt keeps. Knows no jobs or store: the text comes with the job's `spec`.
"""
