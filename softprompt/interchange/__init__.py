"""Soft prompts of other tools, without gRPC and torch.

`source` finds the file to import in a directory of PEFT, TGIS or caikit, and refuses files that could run code;
`adapter` writes a version as a directory that PEFT loads. Works on bytes: the client sends and fetches them. The
trainer reads an imported file (`trainer_service.imports`).
"""
