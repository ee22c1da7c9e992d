"""`python -m trainer_service.proof_process MODEL_DIR < blob > golden.json`: makes golden records of one prefix.

It is a separate process because the service never holds weights: if it runs out of memory or never ends, only the
golden records of one import are missing. It computes in float32, so that only replicas round, and uses plain
transformers, so that replicas' engines are compared with another implementation.
"""

from __future__ import annotations

import sys

from pydantic import TypeAdapter

from shared.model import base_model
from shared.model.options import ModelOptions
from shared.process.threads import set_torch_threads
from shared.prompt.blob import decode_blob
from shared.prompt.manifest import GoldenRecord
from shared.text.template import InputEncoder
from trainer_service.training.evaluation.golden import golden_records

RECORDS = TypeAdapter(tuple[GoldenRecord, ...])


def main() -> None:
    """Reads a blob from stdin and writes its golden records to stdout as JSON."""
    (model_dir,) = sys.argv[1:]
    set_torch_threads()
    blob = decode_blob(sys.stdin.buffer.read())
    base = base_model.load(model_dir, ModelOptions(dtype="float32", device="cpu"))
    sys.stdout.buffer.write(
        RECORDS.dump_json(golden_records(base, blob.prefix, InputEncoder(base.tokenizer, blob.manifest.template)))
    )


if __name__ == "__main__":
    main()
