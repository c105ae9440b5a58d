"""What the fake services say of their model: cheap, deterministic, and of a real tokenizer."""

from collections.abc import Iterator

import numpy as np

from distill.tensors import decode_int32, encode_floats, encode_int32
from distill.tokenizer import TextTokenizer
from distill.v1 import scoring_pb2
from tests.support.tiny_models import CHAT_TEMPLATE, tiny_tokenizer

VOCAB_SIZE = 400
END_TOKEN = 2
COMPLETION = "Answer: Paris."
ROWS_PER_CHUNK = 3


def fake_tokenizer() -> TextTokenizer:
    """The tokenizer of both fakes."""
    return TextTokenizer(
        tokenizer_json=tiny_tokenizer(VOCAB_SIZE).to_str(),
        chat_template=CHAT_TEMPLATE,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        end_token_ids=[END_TOKEN],
    )


def fake_model_info(tokenizer: TextTokenizer, *, include_tokenizer: bool) -> scoring_pb2.ModelInfo:
    message = scoring_pb2.ModelInfo(
        name="fake",
        family="llama",
        vocab_size=VOCAB_SIZE,
        hidden_size=8,
        layer_count=2,
        parameter_count=1234,
        compute_dtype="float32",
        weights_version="w0",
        tokenizer_fingerprint=tokenizer.fingerprint,
        limits=scoring_pb2.Limits(
            max_sequence_tokens=512,
            max_top_k=VOCAB_SIZE,
            max_sequences=64,
            max_request_tokens=8192,
            max_request_bytes=1 << 20,
        ),
    )
    if include_tokenizer:
        message.tokenizer.CopyFrom(
            scoring_pb2.Tokenizer(
                tokenizer_json=tokenizer.tokenizer_json,
                chat_template=tokenizer.chat_template,
                bos_token=tokenizer.bos_token,
                eos_token=tokenizer.eos_token,
                end_token_ids=tokenizer.end_token_ids,
            )
        )
    return message


def row_log_probs(prefix: np.ndarray) -> np.ndarray:
    """The fakes' distribution after a prefix: [V] log-probs that depend on all its tokens."""
    logits = np.random.default_rng([7, *prefix.tolist()]).normal(size=VOCAB_SIZE)
    return logits - np.log(np.exp(logits).sum())


def score_prompt(row: int, tokens: np.ndarray, first: int, top_k: int) -> scoring_pb2.TopKChunk:
    """One chunk: rows [first, first + P) of a prompt, P at most ROWS_PER_CHUNK."""
    last = min(first + ROWS_PER_CHUNK, len(tokens))
    dense = np.stack([row_log_probs(tokens[:position]) for position in range(first, last)])
    order = np.argsort(-dense, axis=-1)[:, :top_k]
    kept = np.take_along_axis(dense, order, -1)
    with np.errstate(divide="ignore"):
        tail = np.log(np.maximum(1 - np.exp(kept).sum(-1), 0))
    return scoring_pb2.TopKChunk(
        prompt_index=row,
        first_row=first,
        token_ids=encode_int32(order),
        log_probs=encode_floats(kept),
        prompt_log_probs=encode_floats(dense[np.arange(last - first), tokens[first:last]]),
        tail_log_probs=encode_floats(tail),
        entropies=encode_floats(-(np.exp(dense) * dense).sum(-1)),
    )


def score(scoring: scoring_pb2.Scoring) -> Iterator[scoring_pb2.TopKChunk]:
    """The chunks of a request; those of different prompts take turns."""
    prompts = [decode_int32(prompt.token_ids, "prompt", (1,)) for prompt in scoring.prompts]
    positions = [
        prompt.score_from if prompt.HasField("score_from") else 1 for prompt in scoring.prompts
    ]
    while any(position < len(prompts[row]) for row, position in enumerate(positions)):
        for row, tokens in enumerate(prompts):
            if positions[row] < len(tokens):
                yield score_prompt(row, tokens, positions[row], scoring.top_k)
                positions[row] += ROWS_PER_CHUNK


def sample(
    tokenizer: TextTokenizer, sampling: scoring_pb2.Sampling, text: str
) -> Iterator[scoring_pb2.SampledSequence]:
    """`text` as the completion of every prompt, the last prompt first."""
    token_ids = np.array([*tokenizer.encode(text), END_TOKEN])
    for index in reversed(range(len(sampling.prompts))):
        yield scoring_pb2.SampledSequence(
            prompt_index=index,
            sample_index=0,
            token_ids=encode_int32(token_ids),
            log_probs=encode_floats(np.zeros(len(token_ids))),
            stop_reason=scoring_pb2.STOP_REASON_STOP,
            text=text,
        )
