"""Distillation of a text into a prompt (Cartridges: Eyuboglu et al. 2025, arXiv:2506.06266).

The teacher is the base model with the text in its context. It asks itself questions about the text and answers them;
the prompt is trained on the teacher's most probable next tokens, without the text.
"""
