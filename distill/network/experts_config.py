"""What a mixture of experts is, apart from its weights. Knows no JAX."""

from dataclasses import dataclass

from distill.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """The sparse MLP of a layer: every token visits some of many gated MLPs."""

    expert_count: int
    """E."""

    choice_count: int
    """k: experts that each token visits; at most `expert_count`."""

    expert_size: int
    """F: width of one expert."""

    is_normalized: bool
    """Whether the shares of a token's experts are divided by their sum."""

    shared_expert_size: int | None = None
    """Width of the expert that every token visits in addition; None: there is none."""

    def __post_init__(self) -> None:
        for name in ("expert_count", "choice_count", "expert_size"):
            if getattr(self, name) < 1:
                raise ModelError(f"config.{name}: must be at least 1, got {getattr(self, name)}")
        if self.choice_count > self.expert_count:
            raise ModelError(
                f"config.choice_count: must be at most the {self.expert_count} experts, "
                f"got {self.choice_count}"
            )
        if self.shared_expert_size is not None and self.shared_expert_size < 1:
            raise ModelError(
                f"config.shared_expert_size: must be at least 1, got {self.shared_expert_size}"
            )
