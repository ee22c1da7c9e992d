"""Conversion of token ids to streamed text: token bytes, incremental detokenizing, stop sequences.

Knows no tensors and no queues.
"""
