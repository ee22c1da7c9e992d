"""The losses of one training, for the picture."""

from __future__ import annotations

from dataclasses import dataclass, field

from softprompt.types.events import Evaluated, JobEvent, ProgressMade


@dataclass
class TrainingRecord:
    """Points are (step, loss). The evaluation at step 0 is of the model without a prompt and does not belong to the
    curve.
    """

    title: str
    train: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    bare_loss: float | None = None
    rival_losses: dict[str, float | None] = field(default_factory=dict)
    """Held-out losses of the base model with an instruction and with examples; None: not measured."""

    def update(self, event: JobEvent) -> None:
        """Add the losses of an event."""
        if isinstance(event, ProgressMade) and event.progress.step > 0:
            self.train.append((event.progress.step, event.progress.train_loss))
        elif isinstance(event, Evaluated) and event.step > 0 and "loss" in event.metrics:
            self.held_out.append((event.step, event.metrics["loss"]))

    @property
    def last_step(self) -> int:
        """The last step with a loss; 0 if there is none."""
        return max((step for step, _ in [*self.train, *self.held_out]), default=0)
