"""Copies a prompt store's directory as if some prompts had never existed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from shared.store.commit import decode_commit, encode_commit
from shared.store.layout import log_key


def copy_without(source: Path, target: Path, prefix: str) -> None:
    """The same store at the same times, without the changes of prompts whose names begin with `prefix`; later ones
    count from there on.
    """
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("log", "snapshot", "replicas"))
    revision = 0
    for number, path in enumerate(sorted((source / "log").glob("*.json")), start=1):
        commit = decode_commit(path.read_bytes(), number)
        if ops := tuple(op for op in commit.ops if not op.prompt.startswith(prefix)):
            revision += 1
            copied = target / log_key(revision)
            copied.parent.mkdir(exist_ok=True)
            copied.write_bytes(encode_commit(replace(commit, revision=revision, ops=ops)))
