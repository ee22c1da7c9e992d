"""Soft prompts to and from other tools: which files may be read, and the directories that PEFT reads. Knows no gRPC and no torch."""
