"""How the learning rate changes over a training."""

from dataclasses import dataclass

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

    def adamw(self, settings: AdamW, index: int, *, time_share: float = 0.0) -> AdamW:
        """The settings of a step; args as in `factor`."""
        scheduled = AdamW()
        scheduled.CopyFrom(settings)
        scheduled.learning_rate *= self.factor(index, time_share=time_share)
        return scheduled

    def factor(self, index: int, *, time_share: float = 0.0) -> float:
        """The share of the learning rate in a step.

        Args:
            index: of the step, counted from 0.
            time_share: how much of the time for training has passed, in [0, 1]. Where time ends
                the training before its last step, the learning rate falls with time.
        """
        if index < self.warmup_steps:
            return (index + 1) / (self.warmup_steps + 1)
        falling_steps = max(self.step_count - 1 - self.warmup_steps, 1)
        progress = max((index - self.warmup_steps) / falling_steps, time_share)
        return 1 + (self.final_factor - 1) * progress
