"""Notes for the user about a job's data. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from shared.text.counted import counted
from trainer_service.training.comparison import MIN_EXAMPLES
from trainer_service.training.spec import FilledHyperparameters

FEW_TRAINING_EXAMPLES = 64
MANY_EPOCHS = 20
_SHOWN_LABELS = 10
_UNKNOWN = (
    "characters for which the model has no token: it reads and learns its token for unknown text in their place. Spell "
    "them in other characters, or choose another base model"
)


def data_notes(
    num_train: int,
    num_held_out: int,
    num_unknown: int,
    has_unknown_template: bool,
    hyper: FilledHyperparameters,
    untrained_labels: Sequence[str] = (),
) -> tuple[str, ...]:
    """Notes about too few training examples or held-out examples (`docs/quality.md` gives the reasons), about labels
    without a training example, and about characters of the template, and of `num_unknown` examples, that the tokenizer
    does not know.
    """
    notes = list[str]()
    epochs = hyper.num_steps * hyper.batch_size / num_train
    if num_train < FEW_TRAINING_EXAMPLES and epochs > MANY_EPOCHS:
        notes.append(
            f"trains {epochs:.0f} times over {counted(num_train, 'example')}: it learns their form, and little more; "
            "the result says whether it beats the model with an instruction and examples in its input"
        )
    if 0 < num_held_out < MIN_EXAMPLES:
        notes.append(
            f"{counted(num_held_out, 'held-out example')} can't tell which model is better: "
            f"at least {MIN_EXAMPLES} are needed, and 100 are wise"
        )
    if untrained_labels:
        have, it = ("has", "it") if len(untrained_labels) == 1 else ("have", "them")
        names = ", ".join(map(repr, untrained_labels[:_SHOWN_LABELS]))
        names += ", ..." if len(untrained_labels) > _SHOWN_LABELS else ""
        reason = f"{have} no training example, so that the prompt can't learn to choose {it}"
        notes.append(f"{counted(len(untrained_labels), 'label')} {reason}: {names}")
    if has_unknown_template:
        notes.append(f"the template has {_UNKNOWN}")
    if num_unknown:
        have = "example has" if num_unknown == 1 else "examples have"
        notes.append(f"{num_unknown} {have} {_UNKNOWN}")
    return tuple(notes)
