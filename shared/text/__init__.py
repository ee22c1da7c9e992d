"""From an input to token ids: templates, special tokens, truncation.

Training, evaluation, golden records and serving share this code.
"""
