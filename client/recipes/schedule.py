"""How the learning rate changes over a training."""

from dataclasses import dataclass, replace

from client.settings import AdamW


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A linear rise to the learning rate, then a linear fall to a share of it."""

    step_count: int
    """Optimizer steps in all."""

    warmup_steps: int = 0
    """Steps before the full learning rate: step i of them, from 1, has i / (warmup_steps + 1)."""

    final_factor: float = 1.0
    """The share of the learning rate that the last step has."""

    def adamw(self, settings: AdamW, index: int) -> AdamW:
        """The settings of step `index`, counted from 0."""
        return replace(settings, learning_rate=settings.learning_rate * self.factor(index))

    def factor(self, index: int) -> float:
        """The share of the learning rate in step `index`, counted from 0."""
        if index < self.warmup_steps:
            return (index + 1) / (self.warmup_steps + 1)
        falling_steps = max(self.step_count - 1 - self.warmup_steps, 1)
        progress = (index - self.warmup_steps) / falling_steps
        return 1 + (self.final_factor - 1) * progress
