"""Texts in blocks: whole paragraphs, none twice, none in both parts."""

import importlib
from pathlib import Path

import pytest

from client.data.corpus import (
    BLOCK_CHARACTERS,
    cut_blocks,
    cut_sequences,
    help_topics,
    load_corpus,
)
from client.errors import DatasetError
from tests.client.fake_model import fake_tokenizer


def paragraphs(block: str) -> set[str]:
    return {" ".join(paragraph.split()) for paragraph in block.split("\n\n")}


def test_pythons_help_is_prose_enough_and_no_paragraph_is_in_both_parts() -> None:
    corpus = load_corpus(None)
    assert sum(map(len, corpus.training)) > 200_000
    assert sum(map(len, corpus.heldout)) > 20_000
    trained = set().union(*map(paragraphs, corpus.training))
    assert not trained & set().union(*map(paragraphs, corpus.heldout))
    assert any("Assert statements are a convenient way" in block for block in corpus.training)
    assert load_corpus(None) == corpus


def test_a_paragraph_that_occurred_before_is_left_out_however_it_is_wrapped() -> None:
    long = "word " * (BLOCK_CHARACTERS // 5 + 1)
    blocks = list(cut_blocks([f"one\ntwo\n\n{long}\n\nthree", f"one two\n\n{long}\n\nfour"]))
    assert blocks == [f"one\ntwo\n\n{long}", "three", "four"]


def test_a_file_is_read_and_one_with_too_little_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"{index} " + "word " * 500 for index in range(16)))
    corpus = load_corpus(path)
    assert len(corpus.training) == 14
    assert [block.split()[0] for block in corpus.heldout] == ["5", "15"]
    path.write_text("too little")
    with pytest.raises(DatasetError, match=r"text\.txt: must have 6 or more blocks .* got 1"):
        load_corpus(path)
    with pytest.raises(DatasetError, match="cannot be read"):
        load_corpus(tmp_path / "absent")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DatasetError, match="is not UTF-8"):
        load_corpus(path)


def test_a_python_without_its_topics_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(DatasetError, match=r"without its help topics .* give a text file"):
        help_topics()


def test_sequences_have_one_length_and_follow_each_other() -> None:
    tokenizer = fake_tokenizer()
    blocks = ["The student learns.", "The teacher scores."]
    token_ids = tokenizer.encode("\n\n".join(blocks))
    sequences = cut_sequences(tokenizer, blocks, 5)
    assert {len(sequence) for sequence in sequences} == {5}
    assert [token for one in sequences for token in one] == token_ids[: len(token_ids) // 5 * 5]
    assert cut_sequences(tokenizer, blocks, len(token_ids) + 1) == []
