"""`python -m trainer_service.proof_process MODEL_DIR < blob > golden.json`: what a base model answers with one soft
prompt.

A process of its own, since the service itself never holds weights: when this one runs out of memory or never ends, an
import goes without a golden record, and nothing else happens. In float32, so that a replica's rounding is the only one.
Plain transformers, so that what a replica's engine is compared with is not that engine.
"""

from __future__ import annotations

import sys

from pydantic import TypeAdapter

from shared.model import base_model
from shared.process.threads import set_torch_threads
from shared.prompt.blob import decode_blob
from shared.prompt.manifest import GoldenRecord
from shared.text.template import InputEncoder
from trainer_service.training.evaluation.golden import golden_records

RECORDS = TypeAdapter(tuple[GoldenRecord, ...])


def main() -> None:
    (model_dir,) = sys.argv[1:]
    set_torch_threads()
    blob = decode_blob(sys.stdin.buffer.read())
    base = base_model.load(model_dir, dtype="float32", device="cpu")
    sys.stdout.buffer.write(
        RECORDS.dump_json(golden_records(base, blob.soft_prompt, InputEncoder(base.tokenizer, blob.manifest.template)))
    )


if __name__ == "__main__":
    main()
