"""How many floating-point operations a computation needs; what more it does counts as lost.

Two for each parameter and token in a forward pass, one pass more for each gradient: of the
activations, and of the weights where they are trained. The products of attention are not counted,
nor is the look-up of an embedding, nor an adapter, which is a small share.
"""

from dataclasses import dataclass

from distill.network.config import ModelConfig
from distill.network.projections import kind_projections

SCORING_PASSES = 1
LORA_PASSES = 2
"""Forward, and the gradient of every product's input."""
FULL_PASSES = 3
"""The gradient of every weight as well."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a computation needs, however it is done."""

    body_tokens: int
    """Tokens that must go through the layers; padding is none, and a shared prefix counts once."""

    head_rows: int
    """Rows whose logits are wanted."""

    passes: int
    """One of the `*_PASSES`."""

    def flops(self, config: ModelConfig) -> float:
        """Multiplications and additions for one run."""
        body = self.body_tokens * body_parameter_count(config)
        head = self.head_rows * config.hidden_size * config.vocab_size
        return 2.0 * self.passes * (body + head)


def body_parameter_count(config: ModelConfig) -> int:
    """Weights of the layers' projections, each layer by its kind.

    Those of the norms are none of a matrix product, and those of experts are left out: how many a
    token meets is the router's choice.
    """
    return sum(
        inputs * outputs
        for layer in range(config.layer_count)
        for inputs, outputs in kind_projections(config, config.kind_of(layer)).values()
    )
