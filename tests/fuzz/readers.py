"""What reads bytes of others inside one process. Each function takes the number's generator and damages one input."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import cast

import numpy
import openpyxl
import pandas
import torch
from gguf import GGUFWriter
from safetensors.torch import save
from transformers import AutoTokenizer

from shared.errors import InvalidInput
from shared.model.safetensors_file import complaint_about
from shared.model.shape import ModelShape
from shared.process.call_pool import CallPool
from shared.prompt.blob import decode_blob, read_manifest
from shared.security.callers_file import CallersFile
from shared.store import PromptStore
from shared.store.memory import MemoryBackend
from shared.store.replicas import ReplicaDirectory, ReplicaRecord
from shared.text.template import InputEncoder
from shared.values.enums import PrefixKind, TemplateFormat
from shared.values.message import Message
from shared.values.template import Template
from softprompt.data.prepare import prepare
from softprompt.gguf import check_file
from softprompt.interchange.source import ImportSource
from softprompt.types.data import Data
from tests.fuzz.mutate import TEXTS, damaged_bytes, damaged_json, odd_value
from tests.shared.prompt.blobs import make_blob
from tests.tiny_models import save_tiny_llama
from tests.trainer_service.builders import BASE_MODEL
from trainer_service.base_models import BaseModels, KnownBaseModel
from trainer_service.datasets.csv_upload import CsvUpload
from trainer_service.imports import ImportRequest, read_import
from trainer_service.training.data.dataset import parse_examples

Reader = Callable[[Random], object]

ROWS = (
    {"input": "Where is my parcel?", "output": "On its way."},
    {"input": "bad lamp", "label": "negative"},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
    {
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "weight": 1},
        ]
    },
    {"prompt": "q", "completion": "a"},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    {"instruction": "i", "input": "x", "output": "y"},
)
LINES = [json.dumps(row).encode() for row in ROWS]
CALLERS = {
    "tenants": [{"name": "shop"}],
    "callers": [
        {"name": "app", "tenant": "shop", "roles": ["viewer"], "prompts": ["shop-*"], "token_sha256": ["a" * 64]}
    ],
}


def readers(directory: Path) -> dict[str, Reader]:
    """All of them by name; `directory` is theirs."""
    directory.mkdir(parents=True, exist_ok=True)
    encoder = _Templates(directory)
    return {
        "blob": _blob,
        "store": _store,
        "dataset": _dataset,
        "csv-upload": _csv_upload,
        "file": _Files(directory),
        "import": _Imports(directory),
        "safetensors": _Safetensors(directory),
        "callers": partial(_callers, directory),
        "gguf": _Gguf(directory),
        "template": encoder,
    }


_BLOBS = [make_blob(kind=kind) for kind in PrefixKind]


def _blob(random: Random) -> None:
    data = damaged_bytes(random.choice(_BLOBS), _BLOBS, random)
    if random.random() < 0.5:  # a header that is JSON, so that damage goes deeper
        whole = random.choice(_BLOBS)
        end = 8 + int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8:end])
        if random.random() < 0.7:
            header["__metadata__"]["manifest"] = json.dumps(
                damaged_json(json.loads(header["__metadata__"]["manifest"]), random)
            )
        else:
            header = damaged_json(header, random)
        text = json.dumps(header).encode()
        data = len(text).to_bytes(8, "little") + text + whole[end:]
    try:
        decode_blob(data)
    finally:
        read_manifest(data)


def _store(random: Random) -> None:
    """A whole store, with a snapshot and a heartbeat, in which one object is damaged."""
    backend = _whole_store()
    key = random.choice(
        [info.key for folder in ("", "log", "blobs", "replicas", "snapshots") for info in backend.list(folder)]
    )
    data = backend.get(key, 1 << 20) or b""
    try:
        changed = json.dumps(damaged_json(json.loads(data), random)).encode()
    except ValueError:
        changed = data
    if random.random() < 0.5 or changed == data:
        changed = damaged_bytes(data, _BLOBS, random)
    backend.put(key, changed)
    store = PromptStore(backend)
    store.list_replicas()
    index = store.refresh(check=True)
    for prompt in index.prompts.values():
        for version in prompt.versions.values():
            store.fetch(version.digest)


def _whole_store() -> MemoryBackend:
    backend = MemoryBackend()
    store = PromptStore(backend)
    for number in range(3):
        store.publish("support-tone", _BLOBS[0], job=f"job-{number}", alias="default" if number else None)
        if number == 1:
            store.write_snapshot()
    record = ReplicaRecord(
        id="r-1", started_at="2026-01-02T03:04:05.000006Z", address="127.0.0.1:1", recent=("support-tone",)
    )
    ReplicaDirectory(backend).put(record)
    return backend


def _dataset(random: Random) -> None:
    lines = [random.choice(LINES[:3])] * random.randint(2, 6)
    at = random.randrange(len(lines))
    if random.random() < 0.5:
        lines[at] = json.dumps(damaged_json(json.loads(lines[at]), random)).encode()
    else:
        lines[at] = damaged_bytes(lines[at], LINES, random)
    parse_examples(b"\n".join(lines).split(b"\n"), random.choice(((), ("negative", "positive"))))


def _csv_upload(random: Random) -> None:
    data = damaged_bytes(b'input,output\n"a ""b"", c",d\r\ne,"f\ng"\n' * random.randint(1, 3), LINES, random)
    step = random.choice((1, 7, 1 << 20))

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(data), step):
            yield data[at : at + step]

    async def read() -> None:
        upload = CsvUpload(0, "", 1 << 20)
        pool = CallPool("fuzz", max_threads=1)
        try:
            lines = b"".join([line async for line in upload.json_lines(chunks(), pool)])
        finally:
            pool.close()
        parse_examples(lines.splitlines())

    asyncio.run(read())


class _Files:
    """Files of examples in every format that the client reads."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        frame = pandas.DataFrame([ROWS[0], ROWS[0] | {"input": 3, "output": None}])
        sheet, parquet = io.BytesIO(), io.BytesIO()
        book = openpyxl.Workbook()
        for row in (("input", "output"), ("a", "b"), (1, None)):
            book.active.append(row)
        book.save(sheet)
        frame.astype(str).to_parquet(parquet)
        lines = b"\n".join(LINES)
        self._files = {
            ".jsonl": lines,
            ".json": b"[" + b",".join(LINES) + b"]",
            ".csv": b'input,output\na,b\n"c\nd",e\n',
            ".tsv": b"input\tlabel\na\tb\n",
            ".xlsx": sheet.getvalue(),
            ".parquet": parquet.getvalue(),
            ".jsonl.gz": gzip.compress(lines),
            ".txt": "\ufeffinput;output\r\nä;ö\r\n".encode("utf-16"),
        }

    def __call__(self, random: Random) -> None:
        suffix = random.choice(list(self._files))
        path = self._directory / f"data{suffix}"
        data = self._files[suffix]
        if suffix in (".json", ".jsonl"):
            rows = [damaged_json(row, random) for row in [random.choice(ROWS)] * 3]
            data = (
                json.dumps(rows).encode() if suffix == ".json" else b"\n".join(json.dumps(row).encode() for row in rows)
            )
        if random.random() < 0.6:
            data = damaged_bytes(data, list(self._files.values()), random)
        path.write_bytes(data)
        columns = random.choice((("", ""), (random.choice(TEXTS), ""), ("input", "output")))
        prepare(Data(str(path), *columns))


class _Imports:
    """Adapters of PEFT."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "adapter"
        self._directory.mkdir(exist_ok=True)
        self._config = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4, "token_dim": 8}

    def __call__(self, random: Random) -> None:
        weights, config = damaged_bytes(_BLOBS[0], _BLOBS, random), damaged_json(self._config, random)
        (self._directory / "adapter_model.safetensors").write_bytes(weights if random.random() < 0.5 else _BLOBS[0])
        (self._directory / "adapter_config.json").write_text(json.dumps(config))
        ImportSource.of(self._directory)


class _Safetensors:
    """Prompts of other programs, which the trainer imports, and a model's weights; mostly the header is damaged."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "weights"
        self._directory.mkdir(exist_ok=True)
        rows, width = torch.ones(4, BASE_MODEL.hidden_size), BASE_MODEL.hidden_size
        config = {"hidden_size": width, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 261}
        (self._directory / "config.json").write_text(json.dumps(config))
        self._files = [
            save({"decoder.weight" if name == "decoder" else name: rows}, metadata=metadata)
            for name in ("prompt_embeddings", "decoder", "x")
            for metadata in (None, {"format": "pt"})
        ]

    def __call__(self, random: Random) -> None:
        whole = random.choice(self._files)
        end = 8 + int.from_bytes(whole[:8], "little")
        text = json.dumps(damaged_json(json.loads(whole[8:end]), random)).encode()
        wrong = random.choice((0, 1, 1 << 20, 1 << 40, (1 << 64) - 1))
        length = random.choice((len(text), len(text), len(text), wrong))
        data = length.to_bytes(8, "little") + text + whole[end:]
        if random.random() < 0.3:
            data = damaged_bytes(whole, self._files, random)
        file = self._directory / "model.safetensors"
        file.write_bytes(data)
        ModelShape.read(self._directory)
        complaint_about(file)
        read_import(data, ImportRequest("tone", "tiny", Template(), (), "", ""), cast(BaseModels, _Models()))


class _Models:
    infos = (BASE_MODEL,)

    def get(self, id: str, field: str) -> KnownBaseModel:
        return KnownBaseModel(BASE_MODEL, None, Path())


def _callers(directory: Path, random: Random) -> None:
    path = directory / "callers.json"
    text = json.dumps(damaged_json(CALLERS, random)).encode()
    path.write_bytes(text if random.random() < 0.7 else damaged_bytes(text, LINES, random))
    CallersFile(path)


class _Gguf:
    """GGUF files; mostly damaged in the header, whose numbers are 4 and 8 bytes long."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "model.gguf"
        writer = GGUFWriter(self._path, "llama")
        writer.add_block_count(2)
        writer.add_token_list(["<end>", "a", "b"])
        writer.add_token_types([3, 1, 1])
        writer.add_array("nested", [[1, 2], [3]])
        writer.add_tensor("token_embd.weight", numpy.ones((3, 8), numpy.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        self._whole = self._path.read_bytes()

    def __call__(self, random: Random) -> None:
        data = bytearray(self._whole)
        for _ in range(random.randint(1, 3)):
            size, at = random.choice((4, 8)), random.randrange(len(data) // 2)
            number = random.choice((random.randrange(300), random.randrange(1 << 22), random.getrandbits(8 * size)))
            data[at : at + size] = number.to_bytes(size, "little")
        damaged = bytes(data) if random.random() < 0.6 else damaged_bytes(self._whole, [self._whole], random)
        self._path.write_bytes(damaged)
        try:
            check_file(self._path)
        except ValueError as error:
            raise InvalidInput.of("gguf", str(error)) from error


class _Templates:
    """Templates and conversations with a tokenizer."""

    def __init__(self, directory: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(save_tiny_llama(directory / "tiny"))

    def __call__(self, random: Random) -> None:
        format = random.choice(list(TemplateFormat))
        text = f"{random.choice(TEXTS)}{{input}}{random.choice(TEXTS)}".replace("{input}{input}", "{input}")
        fields = {"system": random.choice(TEXTS)} if random.random() < 0.3 else {}
        if random.random() < 0.3:
            fields["arguments"] = {random.choice(TEXTS): odd_value(random)}  # type: ignore[assignment]
        template = Template(text=text, format=format, **fields).check()  # type: ignore[arg-type]
        encoder = InputEncoder(self._tokenizer, template)
        encoder.encode_input(random.choice(TEXTS))
        encoder.encode_target(random.choice(TEXTS))
        encoder.encode_messages(
            [Message(random.choice(("user", "assistant", "system", "x")), random.choice(TEXTS)) for _ in range(3)]
        )
