"""Writes a dataset for `benchmarks.quality`: `python -m benchmarks.quality.reviews DIRECTORY`.

The dataset has sentences of product reviews with sentiment ratings (Hutto and Gilbert 2014), from vaderSentiment's
source archive. It becomes reviews.train.jsonl and reviews.test.jsonl and is never stored in the repository.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "vaderSentiment==2.5"
SHA256 = "b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84"
INNER = "additional_resources/hutto_ICWSM_2014.tar.gz"
MEMBER = "amazonReviewSnippets_GroundTruth.txt"
LABELS = ("positive", "negative")
MIN_RATING = 0.5
NUM_TEST, SPLIT_SEED = 1000, 0


def main() -> None:
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    rows = _parse(_fetch())
    random.Random(SPLIT_SEED).shuffle(rows)
    for part, some in (("train", rows[NUM_TEST:]), ("test", rows[:NUM_TEST])):
        (directory / f"reviews.{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))


def _parse(data: bytes) -> list[dict[str, str]]:
    rows = []
    for line in data.decode("latin-1").splitlines():
        _, rating, text = line.split("\t", 2)
        if abs(float(rating)) > MIN_RATING and text.strip():
            rows.append({"input": text.strip(), "output": LABELS[float(rating) < 0]})
    return rows


def _fetch() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary",
            ":all:",
            "--dest",
            directory,
            PACKAGE,
        ]
        subprocess.run([*command, "--no-build-isolation"], check=True)
        archive = next(Path(directory).glob("*.tar.gz"))
        if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
            raise SystemExit(f"{archive.name} differs from the archive that this benchmark expects")
        with tarfile.open(archive) as outer:
            inner = _member(outer, INNER)
        with tarfile.open(fileobj=io.BytesIO(inner)) as nested:
            return _member(nested, MEMBER)


def _member(archive: tarfile.TarFile, ending: str) -> bytes:
    """Reads one file of an archive without extracting it to disk."""
    for entry in archive:
        if entry.isfile() and entry.name.endswith(ending) and not Path(entry.name).name.startswith("._"):
            file = archive.extractfile(entry)
            if file is not None:
                return file.read()
    raise FileNotFoundError(f"the archive has no {ending}")


if __name__ == "__main__":
    main()
