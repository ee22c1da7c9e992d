"""Soft prompts of other tools: which files may be imported, and export as PEFT's directories. Imports neither gRPC nor
torch.
"""
