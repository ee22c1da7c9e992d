"""Blobs of each kind of prefix, and their bytes taken apart and put together again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.prompt.blob import encode_blob
from shared.values.enums import PrefixKind
from tests.shared.prompt.blobs import make_blob, manifest, soft_prompt

BLOB = encode_blob(soft_prompt(), manifest())
BLOBS = {kind: make_blob(kind=kind) for kind in PrefixKind}
KEY_VALUES = BLOBS[PrefixKind.PREFIX]
FIRST = {PrefixKind.PROMPT: "prompt_embeddings", PrefixKind.PREFIX: "layers.0.key"}
by_kind = pytest.mark.parametrize("kind", list(PrefixKind))


def split(blob: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + int.from_bytes(blob[:8], "little")
    return json.loads(blob[8:end]), blob[end:]


def join(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def with_tensor(kind: PrefixKind = PrefixKind.PROMPT, **fields: Any) -> bytes:
    header, data = split(BLOBS[kind])
    header[FIRST[kind]] |= fields
    return join(header, data)


def with_manifest(of: PrefixKind = PrefixKind.PROMPT, **fields: Any) -> bytes:
    header, data = split(BLOBS[of])
    header["__metadata__"]["manifest"] = json.dumps(json.loads(header["__metadata__"]["manifest"]) | fields)
    return join(header, data)


HEADER, DATA = split(BLOB)
