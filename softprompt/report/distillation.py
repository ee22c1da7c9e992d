"""What a distilled prompt keeps of its teacher and what it saves, in words."""

from __future__ import annotations

from shared.values.results import DistillationResult


def distillation_facts(found: DistillationResult) -> dict[str, str]:
    """Sentences by title."""
    prompt, teacher = found.prompt_prefill_seconds, found.teacher_prefill_seconds
    time = ""
    if prompt is not None and teacher is not None:
        time = f"; its input is computed in {1000 * prompt:.3g} ms instead of {1000 * teacher:.3g} on the worker"
    return {
        "studied": f"{found.num_questions} questions and {found.num_held_out} held out, with "
        f"{found.num_answer_tokens} tokens of answers",
        "teacher": f"KL {found.kl:.3g} nats per token (bare model {found.bare_kl:.3g}); the same token in "
        f"{found.agreement:.1%} (bare model {found.bare_agreement:.1%})",
        "saves": f"{found.document_tokens} tokens in each request{time}",
    }
