"""Accuracy and time of weights of 4 and 8 bits."""
