"""The data set: sentences of product reviews with sentiment ratings (Hutto and Gilbert 2014), from vaderSentiment's source archive.

Fetched into a cache of the user, never into the repository.
"""

from __future__ import annotations

import hashlib
import io
import random
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from trainer_service.training.spec import Example

PACKAGE = "vaderSentiment==2.5"
SHA256 = "b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84"
INNER = "additional_resources/hutto_ICWSM_2014.tar.gz"
MEMBER = "amazonReviewSnippets_GroundTruth.txt"
LABELS = ("positive", "negative")
MIN_RATING = 0.5
NUM_TEST, NUM_VALIDATION, SPLIT_SEED = 1000, 500, 0


@dataclass(frozen=True)
class Reviews:
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]


def load_reviews(cache: Path) -> Reviews:
    """The fixed split, fetched on first use."""
    path = cache / MEMBER
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_fetch())
    examples = _parse(path.read_bytes())
    random.Random(SPLIT_SEED).shuffle(examples)
    held = NUM_TEST + NUM_VALIDATION
    return Reviews(tuple(examples[held:]), tuple(examples[NUM_TEST:held]), tuple(examples[:NUM_TEST]))


def _parse(data: bytes) -> list[Example]:
    examples = []
    for number, line in enumerate(data.decode("latin-1").splitlines(), start=1):
        _, rating, text = line.split("\t", 2)
        if abs(float(rating)) > MIN_RATING and text.strip():
            examples.append(Example(line=number, input=text.strip(), label=LABELS[float(rating) < 0]))
    return examples


def _fetch() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", directory, PACKAGE]
        subprocess.run([*command, "--no-build-isolation"], check=True)
        archive = next(Path(directory).glob("*.tar.gz"))
        if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
            raise SystemExit(f"{archive.name} is not the archive that this benchmark was written for")
        with tarfile.open(archive) as outer:
            inner = _member(outer, INNER)
        with tarfile.open(fileobj=io.BytesIO(inner)) as nested:
            return _member(nested, MEMBER)


def _member(archive: tarfile.TarFile, ending: str) -> bytes:
    """Read one file of an archive, extracting nothing to disk."""
    for entry in archive:
        if entry.isfile() and entry.name.endswith(ending) and not Path(entry.name).name.startswith("._"):
            file = archive.extractfile(entry)
            if file is not None:
                return file.read()
    raise FileNotFoundError(f"the archive has no {ending}")
