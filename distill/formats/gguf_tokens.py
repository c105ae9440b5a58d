"""What both kinds of tokenizers take from a GGUF file. Knows no JAX."""

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, processors

from distill.errors import ModelError
from distill.formats.gguf_file import GgufFile


def token_by_role(file: GgufFile, role: str) -> str | None:
    """Text of the token that the metadata name for a role ("bos", "eos", ...), if any.

    Raises:
        ModelError: its id is not in the vocabulary.
    """
    token_id = file.metadata.get(f"tokenizer.ggml.{role}_token_id")
    if token_id is None:
        return None
    tokens: list[str] = file.require("tokenizer.ggml.tokens")
    if not 0 <= token_id < len(tokens):
        raise ModelError(
            f"GGUF tokenizer.ggml.{role}_token_id: must be below {len(tokens)}, got {token_id}"
        )
    return tokens[int(token_id)]


def added_tokens(tokens: list[str], types: list[int]) -> list[AddedToken]:
    """Tokens that are matched in the text before it is split; control tokens are special."""
    special = (TokenType.CONTROL, TokenType.UNKNOWN)
    return [
        AddedToken(token, special=kind in special, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (*special, TokenType.USER_DEFINED)
    ]


def add_template(tokenizer: Tokenizer, file: GgufFile, *, adds_bos: bool) -> None:
    """Set which tokens the tokenizer puts around a text: those that the file says, or else
    `adds_bos`."""
    adds_bos = file.metadata.get("tokenizer.ggml.add_bos_token", adds_bos)
    adds_eos = file.metadata.get("tokenizer.ggml.add_eos_token", False)
    bos = token_by_role(file, "bos") if adds_bos else None
    eos = token_by_role(file, "eos") if adds_eos else None
    if bos is None and eos is None:
        return
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*([bos] if bos else []), "$A", *([eos] if eos else [])],
        special_tokens=[
            (token, tokenizer.token_to_id(token)) for token in dict.fromkeys((bos, eos)) if token
        ],
    )


def check_ids(tokenizer: Tokenizer, vocabulary: dict[str, int]) -> None:
    """Refuse a tokenizer whose tokens have other ids than those of the file.

    Raises:
        ModelError: they have.
    """
    if tokenizer.get_vocab(with_added_tokens=True) != vocabulary:
        raise ModelError(
            f"the rebuilt tokenizer has {tokenizer.get_vocab_size()} tokens, "
            f"the GGUF file {len(vocabulary)}"
        )
