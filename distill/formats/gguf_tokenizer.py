"""tokenizer.json rebuilt from the vocabulary, merges and token types of a GGUF file.

Knows no JAX. This module has byte-level BPE, `gguf_sentencepiece` has SentencePiece's.
"""

from typing import Any

from gguf import TokenType
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from distill.errors import ModelError
from distill.formats.gguf_file import GgufFile
from distill.formats.gguf_sentencepiece import rebuild_sentencepiece
from distill.formats.gguf_tokens import add_template, added_tokens, check_ids

GPT4_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
    r"|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)
"""How text is split into words since GPT-4; families differ in how many digits stay together."""

PRE_TOKENIZERS = {
    "smollm": "smollm",
    "gpt-2": "gpt-2",
    "gpt2": "gpt-2",
    "llama-bpe": "llama-bpe",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "qwen2": "qwen2",
}
"""The rules of each `tokenizer.ggml.pre`; llama.cpp has had several names for the same rules."""


def rebuild_tokenizer(file: GgufFile) -> Tokenizer:
    """The tokenizer of the model, with the ids of the GGUF file and no others.

    Raises:
        ModelError: it is of a kind not supported, by name, or its parts do not fit.
    """
    kind = file.require("tokenizer.ggml.model")
    if kind == "llama":
        return rebuild_sentencepiece(file)
    if kind != "gpt2":
        raise ModelError(
            f"GGUF tokenizer.ggml.model {kind!r} is not supported; supported: gpt2 (byte-level "
            "BPE), llama (SentencePiece's BPE)"
        )
    pre_name = file.require("tokenizer.ggml.pre")
    if pre_name not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise ModelError(
            f"GGUF tokenizer.ggml.pre {pre_name!r} is not supported; supported: {known}"
        )
    rules = PRE_TOKENIZERS[pre_name]
    tokens: list[str] = file.require("tokenizer.ggml.tokens")
    types: list[int] = file.require("tokenizer.ggml.token_type")
    if len(types) != len(tokens):
        raise ModelError(f"the GGUF file has {len(tokens)} tokens but {len(types)} token types")
    if TokenType.BYTE in types:
        raise ModelError("GGUF tokens of type BYTE are not supported in a byte-level BPE")
    # UNUSED entries only pad the list to the rows of the embedding; the model's own tokenizer
    # has no such tokens.
    vocabulary = {
        token: token_id
        for token_id, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind != TokenType.UNUSED
    }
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[_split_merge(merge) for merge in file.require("tokenizer.ggml.merges")],
            # Llama 3 looks a word up whole before it merges.
            ignore_merges=rules == "llama-bpe",
        )
    )
    if rules == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(rules)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(added_tokens(tokens, types))
    # llama.cpp adds a BOS for Llama 3 also where the file does not say so.
    add_template(tokenizer, file, adds_bos=rules == "llama-bpe")
    check_ids(tokenizer, vocabulary)
    return tokenizer


def _split_merge(merge: str) -> tuple[str, str]:
    # No token holds a space: byte-level BPE writes it as another character.
    left, separator, right = merge.partition(" ")
    if not separator or " " in right:
        raise ModelError(f"GGUF merge {merge!r} is not a pair of tokens")
    return left, right


def _pre_tokenizer(rules: str) -> Any:
    match rules:
        case "smollm":
            digits = pre_tokenizers.Digits(individual_digits=True)
            words = pre_tokenizers.ByteLevel(add_prefix_space=False)
            return pre_tokenizers.Sequence([digits, words])
        case "gpt-2":
            return pre_tokenizers.ByteLevel(add_prefix_space=False)
        case _:
            pattern = GPT4_WORDS.format(digits="{1,3}" if rules == "llama-bpe" else "")
            split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
            bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            return pre_tokenizers.Sequence([split, bytes_only])
