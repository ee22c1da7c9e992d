"""A study as tensors of a checkpoint, so that a resumed job doesn't ask and answer again. At most a few megabytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from shared.errors import DamagedBlob
from trainer_service.training.distillation.self_study import SelfStudy, StudiedRow
from trainer_service.training.teacher_targets import TeacherTargets

_PREFIX = "study."


def study_tensors(study: SelfStudy | None) -> dict[str, torch.Tensor]:
    """What `restore_study` reads; empty without a study, or before its first batch."""
    if study is None or not study.num_asked:
        return {}
    texts = [row.question.encode() for row in study.rows]
    answers = [np.array(row.answer_ids, np.int32) for row in study.rows]
    arrays = {
        "num_asked": np.array([study.num_asked], np.int32),
        "questions": np.array(bytearray(b"".join(texts)), np.uint8),
        "question_bytes": np.array([len(text) for text in texts], np.int32),
        "answers": np.concatenate([*answers, np.zeros(0, np.int32)]),
        "answer_tokens": np.array([len(ids) for ids in answers], np.int32),
        "ids": _joined([row.teacher.ids for row in study.rows], np.int32),
        "log_probabilities": _joined([row.teacher.log_probabilities for row in study.rows], np.float32),
    }
    return {f"{_PREFIX}{name}": torch.from_numpy(array) for name, array in arrays.items()}


def restore_study(study: SelfStudy, tensors: Mapping[str, torch.Tensor]) -> None:
    """Continue a study from a checkpoint's tensors; without any, it begins. Raises DamagedBlob if they don't fit."""
    if f"{_PREFIX}num_asked" not in tensors:
        return
    try:
        read = {name: tensors[f"{_PREFIX}{name}"].numpy() for name in _NAMES}
        texts = _parts(read["questions"], read["question_bytes"])
        answers, ids, logs = (_parts(read[name], read["answer_tokens"]) for name in _NAMES[4:])
        rows = [
            StudiedRow(text.tobytes().decode(), tuple(answer.tolist()), TeacherTargets(top, log))
            for text, answer, top, log in zip(texts, answers, ids, logs, strict=True)
        ]
    except (KeyError, ValueError) as error:
        raise DamagedBlob("the checkpoint's self-study can't be read") from error
    study.rows, study.num_asked = rows, int(read["num_asked"][0])


_NAMES = ("num_asked", "questions", "question_bytes", "answer_tokens", "answers", "ids", "log_probabilities")


def _joined(parts: Sequence[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate(parts).astype(kind) if parts else np.zeros((0, 1), kind)


def _parts(values: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    if int(lengths.sum()) != len(values):
        raise ValueError("lengths differ")
    return np.split(values, np.cumsum(lengths)[:-1]) if len(lengths) else []
