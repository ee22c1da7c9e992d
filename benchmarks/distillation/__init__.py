"""Distillation of a long instruction: how much of the teacher a prompt keeps, and what it saves."""
