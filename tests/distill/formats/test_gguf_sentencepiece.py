"""SentencePiece's BPE from a vocabulary and its scores."""

from types import SimpleNamespace
from typing import Any

import pytest
from gguf import TokenType

from distill.errors import ModelError
from distill.formats.gguf_sentencepiece import rebuild_sentencepiece

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# "ab" is learned before "bc": "abc" is "ab" and "c".
LEARNED = ["ab", "bc", "▁a", "▁ab", "a", "b", "c", "▁"]
RUNS = ["\n\n", "▁▁", "\n"]


def gguf_file(**changes: Any) -> Any:
    tokens = [*SPECIAL, *BYTES, *RUNS, *LEARNED, "<unused0>"]
    types = [
        *[TokenType.CONTROL] * 3,
        TokenType.UNKNOWN,
        *[TokenType.BYTE] * 256,
        *[TokenType.USER_DEFINED] * len(RUNS),
        *[TokenType.NORMAL] * len(LEARNED),
        TokenType.UNUSED,
    ]
    scores = [-1000.0] * (len(SPECIAL) + 256 + len(RUNS))
    scores += [-float(index) for index in range(len(LEARNED))]
    metadata = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in types],
        "tokenizer.ggml.scores": [*scores, -1000.0],
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": False,
        **changes,
    }
    return SimpleNamespace(metadata=metadata, require=metadata.__getitem__)


def pieces(text: str) -> list[str]:
    return rebuild_sentencepiece(gguf_file()).encode(text, add_special_tokens=False).tokens


def test_pairs_merge_in_the_order_of_their_scores() -> None:
    assert pieces("abc") == ["ab", "c"]
    assert pieces("bc") == ["bc"]
    assert pieces("c ab") == ["c", "▁ab"]


def test_what_the_user_defined_comes_first() -> None:
    assert pieces("a  a") == ["a", "▁▁", "a"]
    assert pieces("a\n\n\na") == ["a", "\n\n", "\n", "a"]


def test_unknown_characters_are_bytes_and_every_text_comes_back() -> None:
    tokenizer = rebuild_sentencepiece(gguf_file())
    assert pieces("é") == ["<0xC3>", "<0xA9>"]
    for text in ("a  bc\n\nabé 東 ", " a"):
        token_ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(token_ids) == text


def test_text_begins_with_bos_where_special_tokens_are_asked_for() -> None:
    assert rebuild_sentencepiece(gguf_file()).encode("a").tokens == ["<bos>", "a"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.add_space_prefix": True}, "add_space_prefix True is not supported"),
        ({"tokenizer.ggml.scores": [0.0]}, "and 1 scores"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        rebuild_sentencepiece(gguf_file(**changes))
