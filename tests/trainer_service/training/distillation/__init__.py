"""Distillation of a text."""
