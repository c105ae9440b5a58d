"""What a service says about its model."""

from distill.limits import RequestLimits
from distill.models.loading import LoadedModel
from distill.network.functional import head_kernel
from distill.v1 import scoring_pb2


def describe_model(
    model: LoadedModel, limits: RequestLimits, *, include_tokenizer: bool
) -> scoring_pb2.ModelInfo:
    """The answer to GetModelInfo."""
    config, tokenizer = model.config, model.tokenizer
    description = scoring_pb2.ModelInfo(
        name=model.name,
        family=config.family,
        vocab_size=config.valid_vocab_size,
        hidden_size=config.hidden_size,
        layer_count=config.layer_count,
        parameter_count=model.parameter_count,
        compute_dtype=str(head_kernel(config, model.parameters).dtype),
        weights_version=model.weights_version,
        tokenizer_fingerprint=tokenizer.fingerprint,
        limits=scoring_pb2.Limits(
            max_sequence_tokens=limits.max_sequence_tokens,
            max_top_k=limits.max_top_k,
            max_sequences=limits.max_sequences,
            max_request_tokens=limits.max_request_tokens,
            max_request_bytes=limits.max_request_bytes,
        ),
    )
    if include_tokenizer:
        description.tokenizer.CopyFrom(
            scoring_pb2.Tokenizer(
                tokenizer_json=tokenizer.tokenizer_json,
                chat_template=tokenizer.chat_template,
                bos_token=tokenizer.bos_token,
                eos_token=tokenizer.eos_token,
                end_token_ids=tokenizer.end_token_ids,
            )
        )
    return description


def request_limits(
    model: LoadedModel, *, max_sequence_tokens: int | None, max_top_k: int | None
) -> RequestLimits:
    """The limits of a service: what was asked for, within what the model can do.

    Args:
        model: bounds the sequence by its context and K by its vocabulary.
        max_sequence_tokens: None: the model's context.
        max_top_k: None: the vocabulary size.
    """
    config = model.config
    return RequestLimits(
        max_sequence_tokens=min(
            max_sequence_tokens or config.max_position_count, config.max_position_count
        ),
        max_top_k=min(max_top_k or config.valid_vocab_size, config.valid_vocab_size),
    )


def describe_service(model: LoadedModel) -> str:
    """The model in a line of the log."""
    dtype = head_kernel(model.config, model.parameters).dtype
    return f"{model.name} ({model.parameter_count:,} parameters, {dtype})"
