"""How many floating-point operations a computation needs; what more it does counts as lost."""

from distill.models.config import ModelConfig


def forward_flops(config: ModelConfig, *, sequence_tokens: int, head_rows: int) -> float:
    """Multiplications and additions in the matrix products of one sequence.

    Args:
        config: of the model.
        sequence_tokens: T.
        head_rows: rows whose logits are wanted.
    """
    projections = sum(inputs * outputs for inputs, outputs in config.projection_shapes.values())
    # Causal: position t has t + 1 keys; a product for the scores and one for the values.
    attended = sequence_tokens * (sequence_tokens + 1) / 2
    attention = 2 * attended * config.head_count * config.head_dim
    body = config.layer_count * (sequence_tokens * projections + attention)
    head = head_rows * config.hidden_size * config.vocab_size
    return 2 * (body + head)


def lora_training_flops(config: ModelConfig, *, sequence_tokens: int, head_rows: int) -> float:
    """The same for a forward and backward pass that trains an adapter.

    The backward pass goes through every product once more, for the gradient of its input; the
    frozen weights need none. The adapter itself is left out: it is a small share.
    """
    return 2 * forward_flops(config, sequence_tokens=sequence_tokens, head_rows=head_rows)
