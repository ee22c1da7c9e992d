"""Guided generation: compiles the form that an answer must have, and computes which tokens may come next.

Knows tokenizers and llguidance, and no models, rows or requests.
"""
