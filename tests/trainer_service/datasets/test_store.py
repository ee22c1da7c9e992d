"""Stored datasets: content-addressed, complete or absent, and never from outside the allowed roots."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import DamagedBlob, DeadlineExceeded, InvalidInput, NotFound, Unavailable
from shared.location import Location
from shared.text.template import Message
from shared.violations import moved
from trainer_service.datasets import chunks as chunks_module
from trainer_service.datasets.roots import DatasetRoots
from trainer_service.datasets.store import DatasetStore
from trainer_service.datasets.upload import IncomingFile, LineGuard, UploadLimits
from trainer_service.training.data.places import in_message, in_request
from trainer_service.training.spec import Example, TaskKind

LINES = b'{"input": "a", "output": "x"}\n{"input": "b", "output": "y"}\n'
NAME = f"datasets/sha256-{hashlib.sha256(LINES).hexdigest()}"


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    return DatasetStore(
        tmp_path / "datasets",
        UploadLimits(max_examples=100, max_dataset_bytes=10_000, max_line_bytes=1_000),
        DatasetRoots([]),
    )


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_an_upload_is_stored_under_its_digest_and_read_back(store: DatasetStore, tmp_path: Path) -> None:
    stored = await store.receive(chunks(LINES[:10], LINES[10:]), size_bytes=len(LINES))
    assert (stored.name, stored.num_examples, stored.task, stored.labels) == (NAME, 2, TaskKind.GENERATION, ())
    assert [(example.line, example.input, example.output) for example in store.read(NAME)] == [
        (1, "a", "x"),
        (2, "b", "y"),
    ]
    again = await store.receive(chunks(LINES))
    assert again == stored
    assert len(list((tmp_path / "datasets").iterdir())) == 1


@pytest.mark.parametrize(
    "example",
    [
        Example(line=1, input='quotes " and\nlines', output="ünï\u2028code"),
        Example(line=1, input="a", label="x y"),
        Example(line=1, messages=(Message(role="user", content="hi"), Message(role="assistant", content="ho"))),
    ],
)
def test_examples_of_a_request_come_back_as_they_were(store: DatasetStore, example: Example) -> None:
    other = replace(example, line=2, label=None if example.label is None else "z")
    stored = store.add([example, other], "spec.dataset")
    assert store.read(stored.name) == (example, other)


def test_a_dataset_that_shows_one_label_of_a_known_set_can_be_read(store: DatasetStore) -> None:
    examples = (Example(line=1, input="a", label="x"), Example(line=2, input="b", label="x"))
    stored = store.add(examples, "spec.dataset", ["x", "y"])
    assert store.read(stored.name) == examples
    with pytest.raises(InvalidInput, match="at least two labels"):
        store.describe(stored.name)


async def test_blank_lines_and_a_byte_order_mark_keep_their_line_numbers(store: DatasetStore) -> None:
    stored = await store.receive(chunks(b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\n")))
    assert store.read(stored.name) == store.describe(stored.name)[1]
    assert [example.line for example in store.read(stored.name)] == [1, 3]


def test_reading_what_is_not_there_or_was_changed(store: DatasetStore, tmp_path: Path) -> None:
    for name in (NAME, "datasets/../../etc/passwd", "datasets/sha256-zz", "", "x" * 10_000):
        with pytest.raises(NotFound):
            store.read(name)
    store.add([Example(line=1, input="a", output="x")], "spec.dataset")
    (file,) = (tmp_path / "datasets").iterdir()
    file.write_bytes(LINES)
    with pytest.raises(DamagedBlob, match="changed on disk"):
        store.read(f"datasets/{file.stem}")


async def test_a_sender_that_stops_is_given_up_and_leaves_nothing(
    store: DatasetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks_module, "IDLE_SECONDS", 0.02)

    async def stalls() -> AsyncIterator[bytes]:
        yield LINES
        await asyncio.Event().wait()

    with pytest.raises(DeadlineExceeded, match="sent nothing"):
        await store.receive(stalls())
    assert not list((tmp_path / "datasets").iterdir())


async def test_a_full_disk_is_unavailable_and_leaves_nothing(
    store: DatasetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unavailable, match="No space left on device"):
        await store.receive(chunks(LINES))
    assert not list((tmp_path / "datasets").iterdir())


async def test_many_uploads_of_the_same_bytes_at_once_make_one_dataset(store: DatasetStore, tmp_path: Path) -> None:
    stored = await asyncio.gather(*(store.receive(chunks(LINES)) for _ in range(10)))
    assert {dataset.name for dataset in stored} == {NAME}
    assert [path.name for path in (tmp_path / "datasets").iterdir()] == [NAME.replace("datasets/", "") + ".jsonl"]


def test_what_a_killed_process_left_is_removed_later(tmp_path: Path) -> None:
    directory = tmp_path / "datasets"
    directory.mkdir()
    old, fresh = directory / ".incoming-old", directory / ".incoming-fresh"
    old.write_bytes(b"x")
    fresh.write_bytes(b"x")
    yesterday = time.time() - 86_400
    os.utime(old, (yesterday, yesterday))
    DatasetStore(directory, UploadLimits(), DatasetRoots([]))
    assert [path.name for path in directory.iterdir()] == [fresh.name]


def test_memory_and_bytes_are_bounded_while_they_arrive(tmp_path: Path) -> None:
    limits = UploadLimits(max_examples=1_000, max_dataset_bytes=1_024, max_line_bytes=512)
    with IncomingFile(tmp_path, limits) as incoming:
        incoming.write(b"x" * 400 + b"\n")
        with pytest.raises(InvalidInput) as refused:
            incoming.write(b"y" * 513)
        assert refused.value.violations[0].field == "dataset line 2"
    with IncomingFile(tmp_path, limits) as incoming:
        incoming.write(b"x" * 511 + b"\n")
        with pytest.raises(InvalidInput, match="larger than 1024 bytes"):
            incoming.write(b"x\n" * 257)
    assert not list(tmp_path.iterdir())


@given(
    st.lists(st.binary(max_size=30).map(lambda data: data.replace(b"x", b"\n")), max_size=20),
    st.integers(1, 12),
    st.integers(1, 30),
)
def test_the_line_guard_agrees_with_splitting_everything(
    parts: list[bytes], max_line_bytes: int, max_lines: int
) -> None:
    guard = LineGuard(
        UploadLimits.model_construct(max_examples=max_lines, max_line_bytes=max_line_bytes)
    )  # below the setting's range
    data = b"".join(parts)
    lines = data.split(b"\n")
    sound = all(len(line) <= max_line_bytes for line in lines) and len(lines) <= max_lines + 1
    try:
        for part in parts:
            guard.feed(part)
    except InvalidInput:
        assert not sound
    else:
        assert sound


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "inner").mkdir(parents=True)
    (root / "inner" / "data set.jsonl").write_bytes(LINES)
    (root / "alias.jsonl").symlink_to("inner/data set.jsonl")
    (tmp_path / "secret.jsonl").write_bytes(LINES)
    (root / "leak.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (root / "out").symlink_to(tmp_path)
    os.mkfifo(root / "fifo")
    return root


def test_files_under_a_root_are_copied_into_the_store(tmp_path: Path, root: Path) -> None:
    store = DatasetStore(tmp_path / "datasets", UploadLimits(), DatasetRoots([root]))
    for uri in (f"file://{root}/inner/data%20set.jsonl", f"file://localhost{root}/alias.jsonl"):
        assert store.add(uri, "spec.dataset.uri").name == NAME
    (root / "inner" / "data set.jsonl").write_bytes(b"changed")
    assert len(store.read(NAME)) == 2


@pytest.mark.parametrize(
    "uri",
    [
        "file://{root}/../secret.jsonl",
        "file://{root}/inner/%2e%2e/%2e%2e/secret.jsonl",
        "file://{root}/leak.jsonl",
        "file://{root}/out/secret.jsonl",
        "file://{root}/missing.jsonl",
        "file://{root}/inner",
        "file://{root}",
        "file://{root}/fifo",
        "file://{root}/a%00b",
        "file://elsewhere/x.jsonl",
        "file:///etc/passwd",
        "http://127.0.0.1/x.jsonl",
        "s3://bucket/x.jsonl",
        "{root}/inner/data set.jsonl",
        "file://{root}/inner/data%20set.jsonl?x=1",
        "",
        "file://[::1",
        "file:///" + "a" * 5000,
    ],
)
def test_nothing_else_can_be_reached(tmp_path: Path, root: Path, uri: str) -> None:
    store = DatasetStore(tmp_path / "datasets", UploadLimits(), DatasetRoots([root]))
    with pytest.raises(InvalidInput) as refused:
        store.add(uri.replace("{root}", str(root)), "spec.dataset.uri")
    assert refused.value.violations[0].field == "spec.dataset.uri"
    assert not list((tmp_path / "datasets").iterdir())


def test_a_folder_swapped_for_a_link_while_opening_leads_nowhere(tmp_path: Path, root: Path) -> None:
    """Check and opening can't see different files: whichever is raced, the secret is never read."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "data set.jsonl").write_bytes(b"secret")
    roots, uri = DatasetRoots([root]), f"file://{root}/inner/data%20set.jsonl"
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            (root / "inner").rename(root / "moved")
            (root / "inner").symlink_to(outside)
            (root / "inner").unlink()
            (root / "moved").rename(root / "inner")

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for _ in range(500):
            try:
                with roots.open(uri, "uri") as file:
                    assert file.read() == LINES
            except InvalidInput:
                continue
    finally:
        done.set()
        swapper.join()


def test_places_are_named_as_the_caller_wrote_them() -> None:
    move = in_request("validation dataset", Location(("spec", "validation_dataset", "inline", "examples")))

    def moved_text(place: str) -> str:
        return str(move(Location.parse(place)))

    assert moved_text("validation dataset line 3 output") == "spec.validation_dataset.inline.examples[2].output"
    assert moved_text("validation dataset line 3") == "spec.validation_dataset.inline.examples[2]"
    assert moved_text("dataset line 3 output") == "dataset line 3 output"
    assert moved_text("spec.prompt") == "spec.prompt"
    with pytest.raises(InvalidInput) as refused, moved(in_message("spec", "labels")):
        raise InvalidInput.of("labels[1]", "is repeated")
    assert refused.value.violations[0].field == "spec.labels[1]"
