"""From token ids to streamed text: bytes of tokens, incremental detokenizing, stop sequences. Knows no tensors and no
queues.
"""
