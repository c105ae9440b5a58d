"""Text to ids and back, chats, and the digest of a vocabulary."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import InvalidFieldError, ModelError
from distill.tokenizer import TextTokenizer
from tests.support.tiny_models import CHAT_TEMPLATE, tiny_tokenizer, write_tiny_model

TOKENIZER_JSON = tiny_tokenizer(512).to_str()


def make_tokenizer(
    *, tokenizer_json: str = TOKENIZER_JSON, chat_template: str = CHAT_TEMPLATE
) -> TextTokenizer:
    return TextTokenizer(
        tokenizer_json=tokenizer_json,
        chat_template=chat_template,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        end_token_ids=[0],
    )


TOKENIZER = make_tokenizer()


@given(st.text())
def test_text_survives_encoding_and_decoding(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text
    assert all(0 <= token_id < TOKENIZER.vocab_size for token_id in ids)


@pytest.mark.parametrize("text", ["a  b\t\n\n c", "1234567", "naïve 日本語 🙂‍↕️", " ", "\r\n"])
def test_whitespace_digits_and_unicode_survive(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_special_tokens_in_a_text_become_their_ids_and_are_skipped_in_decoding() -> None:
    ids = TOKENIZER.encode("<|im_start|>hi<|im_end|>")
    assert (ids[0], ids[-1]) == (1, 2)
    assert TOKENIZER.decode(ids) == "hi"
    assert TOKENIZER.token_text(2) == "<|im_end|>"


def test_end_ids_are_those_given_and_the_eos_token() -> None:
    assert TOKENIZER.end_token_ids == (0, 2)


def test_truncation_and_padding_saved_in_the_file_are_ignored() -> None:
    tokenizer = tiny_tokenizer(512)
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=64)
    text = "The teacher reads the prompt."
    saved = make_tokenizer(tokenizer_json=tokenizer.to_str())
    assert saved.encode(text) == TOKENIZER.encode(text)


def test_fingerprint_is_of_the_vocabulary_and_not_of_the_file() -> None:
    content = json.loads(TOKENIZER_JSON)
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = dict(reversed(vocabulary.items()))
    for token in content["added_tokens"]:
        token["lstrip"] = True
    same = make_tokenizer(tokenizer_json=json.dumps(content, indent=4), chat_template="")
    assert same.fingerprint == TOKENIZER.fingerprint


@pytest.mark.parametrize("change", ["swap", "add"])
def test_fingerprint_differs_when_the_vocabulary_does(change: str) -> None:
    content = json.loads(TOKENIZER_JSON)
    vocabulary = content["model"]["vocab"]
    if change == "swap":
        first, second = "X", "Y"
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    else:
        vocabulary["never-merged"] = max(vocabulary.values()) + 1
    assert make_tokenizer(tokenizer_json=json.dumps(content)).fingerprint != TOKENIZER.fingerprint


def test_directory_and_its_parts_give_the_same_tokenizer(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "model")
    from_directory = TextTokenizer.from_directory(directory)
    from_parts = TextTokenizer(
        tokenizer_json=from_directory.tokenizer_json,
        chat_template=from_directory.chat_template,
        bos_token=from_directory.bos_token,
        eos_token=from_directory.eos_token,
        end_token_ids=from_directory.end_token_ids,
    )
    chat = [{"role": "user", "content": "Zwölf\n 12"}]
    assert from_parts.encode_chat(chat) == from_directory.encode_chat(chat)
    assert from_parts.fingerprint == from_directory.fingerprint
    assert from_parts.end_token_ids == from_directory.end_token_ids == (2,)


def test_chat_template_file_wins_and_tokens_may_be_objects(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "model")
    (directory / "chat_template.jinja").write_text("{{ bos_token }}|{{ messages[0].content }}")
    settings = {"bos_token": {"content": "<|im_start|>", "lstrip": False}, "eos_token": None}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = TextTokenizer.from_directory(directory)
    assert tokenizer.render_chat([{"role": "user", "content": "x"}]) == "<|im_start|>|x"
    assert tokenizer.eos_token == ""


def test_default_is_taken_of_several_named_templates(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "model")
    templates = [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "plain"},
    ]
    settings = json.dumps({"chat_template": templates})
    (directory / "tokenizer_config.json").write_text(settings)
    assert TextTokenizer.from_directory(directory).render_chat([]) == "plain"


def test_end_ids_come_from_the_model_config_when_generation_has_none(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "model")
    (directory / "generation_config.json").unlink()
    (directory / "config.json").write_text(json.dumps({"eos_token_id": [7, 0]}))
    assert TextTokenizer.from_directory(directory).end_token_ids == (7, 0, 2)


def test_generation_prompt_opens_the_assistants_turn() -> None:
    chat = [{"role": "user", "content": "hi"}]
    closed = TOKENIZER.render_chat(chat, add_generation_prompt=False)
    assert closed == "<|im_start|>user\nhi<|im_end|>\n"
    assert TOKENIZER.render_chat(chat) == closed + "<|im_start|>assistant\n"
    assert TOKENIZER.encode_chat(chat) == TOKENIZER.encode(TOKENIZER.render_chat(chat))


def test_templates_have_the_names_and_tags_of_transformers() -> None:
    source = (
        "{% for message in messages %}{% generation %}{{ message.content }}{% endgeneration %}"
        "{% if loop.first %}{% continue %}{% endif %}!{% endfor %}"
        "{{ strftime_now('%%') }}{{ {'a': '<ü>'} | tojson }}{{ tools is none }}"
    )
    tokenizer = make_tokenizer(chat_template=source)
    chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    assert tokenizer.render_chat(chat) == 'xy!%{"a": "<ü>"}True'


def test_message_refused_by_the_template_is_named() -> None:
    tokenizer = make_tokenizer(chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidFieldError, match=r"messages: .*roles must alternate"):
        tokenizer.render_chat([{"role": "user", "content": "x"}])


def test_template_cannot_reach_out_of_its_sandbox() -> None:
    tokenizer = make_tokenizer(chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(InvalidFieldError, match="messages"):
        tokenizer.render_chat([])


def test_chat_without_a_template_is_refused() -> None:
    with pytest.raises(ModelError, match="no chat template"):
        make_tokenizer(chat_template="").render_chat([])


@pytest.mark.parametrize("source", ["{% if %}", "{{ x "])
def test_unreadable_template_is_refused(source: str) -> None:
    with pytest.raises(ModelError, match="chat template"):
        make_tokenizer(chat_template=source)


def test_missing_or_broken_tokenizer_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        TextTokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        TextTokenizer.from_directory(tmp_path)
