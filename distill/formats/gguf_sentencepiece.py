"""SentencePiece's BPE rebuilt from the vocabulary and the scores of a GGUF file. Knows no JAX.

The file has no merges. SentencePiece merges the pair whose result has the best score. So each way
to cut a token into two others is a merge, and the score of the token is that of the merge.
"""

from gguf import TokenType
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from distill.errors import ModelError
from distill.formats.gguf_file import GgufFile
from distill.formats.gguf_tokens import add_template, added_tokens, check_ids, token_by_role

SPACE = "▁"
"""Stands for a space in the vocabulary."""


def rebuild_sentencepiece(file: GgufFile) -> Tokenizer:
    """The tokenizer of the model, with the ids of the GGUF file and no others.

    Raises:
        ModelError: it has a rule that is not supported, by name, or its parts do not fit.
    """
    for rule, supported in (("add_space_prefix", False), ("remove_extra_whitespaces", False)):
        value = file.metadata.get(f"tokenizer.ggml.{rule}", supported)
        if value != supported:
            raise ModelError(
                f"GGUF tokenizer.ggml.{rule} {value!r} is not supported; supported: {supported}"
            )
    tokens: list[str] = file.require("tokenizer.ggml.tokens")
    types: list[int] = file.require("tokenizer.ggml.token_type")
    scores: list[float] = file.require("tokenizer.ggml.scores")
    if not len(tokens) == len(types) == len(scores):
        raise ModelError(
            f"the GGUF file has {len(tokens)} tokens but {len(types)} token types "
            f"and {len(scores)} scores"
        )
    vocabulary = {
        token: token_id
        for token_id, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind != TokenType.UNUSED
    }
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(vocabulary, types, scores),
            unk_token=token_by_role(file, "unknown"),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_tokens(added_tokens(tokens, types))
    add_template(tokenizer, file, adds_bos=True)
    check_ids(tokenizer, vocabulary)
    return tokenizer


def _merges(
    vocabulary: dict[str, int], types: list[int], scores: list[float]
) -> list[tuple[str, str]]:
    found: list[tuple[float, int, str, str]] = []
    for token, token_id in vocabulary.items():
        kind = types[token_id]
        if kind not in (TokenType.NORMAL, TokenType.USER_DEFINED):
            continue
        # User-defined tokens come before all learned ones, whatever their own scores are.
        score = scores[token_id] if kind == TokenType.NORMAL else 0.0
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-score, len(found), left, right))
    found.sort()
    return [(left, right) for _, _, left, right in found]
