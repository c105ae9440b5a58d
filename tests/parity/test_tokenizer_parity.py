"""Tokenizers and chat templates against Transformers, on the embedded and on a tiny model."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from distill.models.resolve import resolve_reference
from distill.tokenizer import TextTokenizer
from tests.parity.reference import load_reference_tokenizer
from tests.support.parity_cases import FIXTURES, REAL_MODEL, TINY_CASES
from tests.support.tokenizer_cases import CHATS, TEXTS

pytestmark = pytest.mark.parity

Tokenizers = tuple[TextTokenizer, PreTrainedTokenizerBase]


@pytest.fixture(
    scope="module",
    params=["llama-tied", "qwen3", pytest.param(REAL_MODEL, marks=pytest.mark.real_model)],
)
def tokenizers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizers:
    directory: Path
    if request.param == REAL_MODEL:
        directory = resolve_reference(REAL_MODEL).directory
    else:
        directory = TINY_CASES[request.param].write(tmp_path_factory.mktemp(request.param))
    return TextTokenizer.from_directory(directory), load_reference_tokenizer(directory)


def test_texts_have_the_same_tokens(tokenizers: Tokenizers) -> None:
    own, reference = tokenizers
    essay = (FIXTURES / "essay.txt").read_text(encoding="utf-8")
    for text in (*TEXTS, essay):
        for add_special_tokens in (False, True):
            expected = reference(text, add_special_tokens=add_special_tokens)["input_ids"]
            assert own.encode(text, add_special_tokens=add_special_tokens) == expected, text


def test_tokens_have_the_same_text(tokenizers: Tokenizers) -> None:
    own, reference = tokenizers
    for text in TEXTS:
        token_ids = own.encode(text)
        for skip in (False, True):
            expected = reference.decode(token_ids, skip_special_tokens=skip)
            assert own.decode(token_ids, skip_special_tokens=skip) == expected
    every_id = range(own.vocab_size)
    assert [own.token_text(token_id) for token_id in every_id] == [
        reference.decode([token_id]) for token_id in every_id
    ]


def test_chats_have_the_same_text_and_tokens(tokenizers: Tokenizers) -> None:
    own, reference = tokenizers
    for messages in CHATS:
        for is_open in (False, True):
            expected = reference.apply_chat_template(
                messages, add_generation_prompt=is_open, tokenize=False
            )
            assert own.render_chat(messages, add_generation_prompt=is_open) == expected
            expected_ids = reference.apply_chat_template(
                messages, add_generation_prompt=is_open, tokenize=True, return_dict=False
            )
            assert own.encode_chat(messages, add_generation_prompt=is_open) == expected_ids


def test_special_tokens_are_the_same(tokenizers: Tokenizers) -> None:
    own, reference = tokenizers
    assert own.bos_token == reference.bos_token
    assert own.eos_token == reference.eos_token
    assert reference.eos_token_id in own.end_token_ids
    assert own.vocab_size == len(reference)
