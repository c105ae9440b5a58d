"""What a service says about its model."""

from distill.limits import MAX_HELD_BYTES, MAX_REQUEST_BYTES, RequestLimits
from distill.models.loading import LoadedModel
from distill.network.config import ModelConfig
from distill.network.functional import head_kernel
from distill.rpc.messages import message_from
from distill.v1 import scoring_pb2


def describe_model(
    model: LoadedModel, limits: RequestLimits, *, include_tokenizer: bool
) -> scoring_pb2.ModelInfo:
    """The answer to GetModelInfo."""
    config, tokenizer = model.config, model.tokenizer
    return scoring_pb2.ModelInfo(
        name=model.name,
        family=config.family,
        vocab_size=config.valid_vocab_size,
        hidden_size=config.hidden_size,
        layer_count=config.layer_count,
        parameter_count=model.parameter_count,
        compute_dtype=_compute_dtype(model),
        weights_version=model.weights_version,
        tokenizer_fingerprint=tokenizer.fingerprint,
        limits=message_from(scoring_pb2.Limits, limits),
        tokenizer=(message_from(scoring_pb2.Tokenizer, tokenizer) if include_tokenizer else None),
    )


def describe_service(model: LoadedModel) -> str:
    """The model in a line of the log."""
    return f"{model.name} ({model.parameter_count:,} parameters, {_compute_dtype(model)})"


def request_limits(
    config: ModelConfig,
    *,
    max_sequence_tokens: int | None,
    max_top_k: int | None,
    max_held_bytes: int = MAX_HELD_BYTES,
    max_in_flight_mutations: int = 0,
) -> RequestLimits:
    """The limits of a service: what was asked for, within what the model can do.

    Args:
        config: bounds the sequence by the model's context and K by its vocabulary.
        max_sequence_tokens: None: the model's context.
        max_top_k: None: the vocabulary size.
        max_held_bytes: of all requests in progress; bounds a single one, too.
        max_in_flight_mutations: 0: the service has no mutations.
    """
    context, vocabulary = config.max_position_count, config.valid_vocab_size
    return RequestLimits(
        max_sequence_tokens=min(max_sequence_tokens or context, context),
        max_top_k=min(max_top_k or vocabulary, vocabulary),
        max_request_bytes=min(MAX_REQUEST_BYTES, max_held_bytes),
        max_held_bytes=max_held_bytes,
        max_in_flight_mutations=max_in_flight_mutations,
    )


def _compute_dtype(model: LoadedModel) -> str:
    return str(head_kernel(model.config, model.parameters).dtype)
