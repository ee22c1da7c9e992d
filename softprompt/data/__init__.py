"""Readers of training examples in many formats. The readers are lenient; the services accept one strict form. See
docs/data.md.
"""
