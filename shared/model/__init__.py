"""The frozen base model: identity, fingerprint, weights, how it is loaded, and whether it can take a soft prompt.
Imports torch.
"""
