"""What `distill demo-compress` runs, and what it runs by default."""

from dataclasses import dataclass, field
from pathlib import Path

from client.recipes.batches import Targets
from client.recipes.off_policy import OffPolicySettings
from client.settings import AdamW


def default_training() -> OffPolicySettings:
    """What won back most in the time of the demo; docs/compress.md has the measurements."""
    return OffPolicySettings(
        step_count=80,
        sequences_per_step=4,
        top_k=20,
        adamw=AdamW(learning_rate=5e-4, max_gradient_norm=1.0),
        warmup_steps=8,
        final_learning_rate_factor=0.05,
        max_seconds=540.0,
    )


@dataclass(frozen=True, kw_only=True)
class CompressSettings:
    """What to run and where the results go."""

    out: Path
    """Directory of the results; what an earlier run left there is replaced."""

    model: str
    """Reference of the teacher, whose layers the student is made of."""

    keep_layers: str
    """Which of them, as in `distill prune`."""

    text_file: Path | None = None
    """Text to train and measure on. None: the topics of Python's help()."""

    sequence_tokens: int = 256
    """Length of the sequences that the text is cut into."""

    max_heldout_sequences: int = 24
    """Most sequences of held-out text to measure on."""

    measurements: int = 5
    """Measurements in the course of the training, the last one at its end."""

    targets: Targets = Targets.PULL
    """How the distributions travel."""

    training: OffPolicySettings = field(default_factory=default_training)
    """How the student is trained."""
