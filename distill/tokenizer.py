"""Text to token ids and back, and chats to text. Knows no JAX: the client uses it too."""

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from distill.errors import InvalidFieldError, ModelError
from distill.files import read_json_object


class TextTokenizer:
    """A tokenizer.json with its chat template and the ids that end a text."""

    def __init__(
        self,
        *,
        tokenizer_json: str,
        chat_template: str,
        bos_token: str,
        eos_token: str,
        end_token_ids: Sequence[int],
    ) -> None:
        """
        Args:
            tokenizer_json: the text of tokenizer.json.
            chat_template: Jinja source; empty: the model has none.
            bos_token: text of the token that begins a text; empty: none.
            eos_token: text of the token that ends a text; empty: none.
            end_token_ids: ids at which sampling stops; the id of `eos_token` is added.

        Raises:
            ModelError: the tokenizer or the template cannot be read.
        """
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # The library raises the base class, with the reason as text.
            raise ModelError(f"tokenizer.json cannot be read: {error}") from error
        # A file that was saved after training may ask for both; a scored prompt must be the whole
        # text, and nothing else.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise ModelError("tokenizer.json has an empty vocabulary")
        self.tokenizer_json = tokenizer_json
        self.chat_template = chat_template
        self.bos_token = bos_token
        self.eos_token = eos_token
        self.vocab_size = max(vocabulary.values()) + 1
        base = self._tokenizer.get_vocab(with_added_tokens=False)
        self.base_vocab_size = max(base.values(), default=-1) + 1
        """Without added tokens, for which a model need not have rows."""
        eos_id = vocabulary.get(eos_token)
        ends = [*end_token_ids, *([] if eos_id is None else [eos_id])]
        self.end_token_ids = tuple(dict.fromkeys(ends))
        self.fingerprint = _fingerprint(vocabulary)
        self._template = _compile_template(chat_template) if chat_template else None

    @classmethod
    def from_directory(cls, path: Path) -> "TextTokenizer":
        """From a Hugging Face model directory.

        Reads tokenizer.json, tokenizer_config.json, chat_template.jinja where present, and the
        ids that end a text from generation_config.json, or else config.json.

        Raises:
            ModelError: tokenizer.json is missing, or a file cannot be read.
        """
        tokenizer_file = path / "tokenizer.json"
        if not tokenizer_file.is_file():
            raise ModelError("the model directory has no tokenizer.json")
        settings = _read_json(path / "tokenizer_config.json")
        end_ids = _read_json(path / "generation_config.json").get("eos_token_id")
        if end_ids is None:
            end_ids = _read_json(path / "config.json").get("eos_token_id")
        if end_ids is None:
            end_ids = []
        return cls(
            tokenizer_json=tokenizer_file.read_text(encoding="utf-8"),
            chat_template=_read_template(path, settings),
            bos_token=_token_content(settings.get("bos_token")),
            eos_token=_token_content(settings.get("eos_token")),
            end_token_ids=[end_ids] if isinstance(end_ids, int) else end_ids,
        )

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a text. Special tokens written out in it become their ids.

        Args:
            text: any Unicode text.
            add_special_tokens: also add what the tokenizer puts around a text (a BOS, say).
        """
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids. An id without a token has none; bytes that are no UTF-8 are U+FFFD."""
        ids = [int(token_id) for token_id in token_ids]
        text: str = self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def token_text(self, token_id: int) -> str:
        """Text of one token, special or not. Half of a character reads as U+FFFD."""
        return self.decode([token_id], skip_special_tokens=False)

    def render_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> str:
        """The chat as the text that the model was trained on.

        Args:
            messages: each with "role" and "content".
            add_generation_prompt: also open the assistant's next turn.

        Raises:
            ModelError: the model has no chat template.
            InvalidFieldError: the template refuses these messages.
        """
        if self._template is None:
            raise ModelError("the model has no chat template")
        special_tokens = {"bos_token": self.bos_token, "eos_token": self.eos_token}
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **{name: text for name, text in special_tokens.items() if text},
            )
        except jinja2.TemplateError as error:
            raise InvalidFieldError("messages", f"refused by the chat template: {error}") from error

    def encode_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Token ids of `render_chat`. Errors as there. The template writes the BOS, if any."""
        return self.encode(self.render_chat(messages, add_generation_prompt=add_generation_prompt))


class _GenerationTag(Extension):
    """Lets `{% generation %}` blocks through: Transformers marks the assistant's tokens there."""

    tags = {"generation"}  # noqa: RUF012 - the type that jinja2 declares

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile_template(source: str) -> jinja2.Template:
    # The settings, names and sandbox under which Transformers renders chat templates: a template
    # comes with the weights, so it is code from whoever made them.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise ModelError(f"the chat template cannot be read: {error}") from error


def _to_json(value: object, indent: int | None = None) -> str:
    # jinja2's own filter escapes for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def describe_mismatch(
    *, teacher: str, teacher_fingerprint: str, student: str, student_fingerprint: str
) -> str:
    """Why a teacher and a student whose tokenizers differ cannot work together, and what to do.

    Args:
        teacher: which teacher, in words.
        teacher_fingerprint: of its tokenizer.
        student: which student, in words.
        student_fingerprint: of its tokenizer.
    """
    return (
        f"tokenizer_fingerprint: {teacher} has {teacher_fingerprint}, {student} has "
        f"{student_fingerprint}: a token id is another text for each, so that their distributions "
        "cannot be compared; start both with models of one tokenizer, as are most models of one "
        "family and what `distill prune` makes of them"
    )


def _fingerprint(vocabulary: Mapping[str, int]) -> str:
    # Added tokens are in the vocabulary; flags on them vary between files of one vocabulary.
    digest = hashlib.blake2b(digest_size=16)
    for token, token_id in sorted(vocabulary.items(), key=lambda item: (item[1], item[0])):
        text = token.encode("utf-8")
        # With its length, so that no two vocabularies give the same bytes.
        digest.update(f"{token_id}:{len(text)}:".encode())
        digest.update(text)
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty when there is no such file."""
    return read_json_object(path) if path.is_file() else {}


def _read_template(path: Path, settings: Mapping[str, Any]) -> str:
    template_file = path / "chat_template.jinja"
    if template_file.is_file():
        return template_file.read_text(encoding="utf-8")
    template = settings.get("chat_template") or ""
    if isinstance(template, str):
        return template
    # Several templates by name, of which "default" is the one for plain chats.
    named = {entry["name"]: entry["template"] for entry in template}
    default: str = named.get("default", "")
    return default


def _token_content(token: str | Mapping[str, Any] | None) -> str:
    """A special token in tokenizer_config.json is a text, or an object with its flags."""
    if token is None:
        return ""
    return token if isinstance(token, str) else str(token["content"])
