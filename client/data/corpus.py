"""Plain text to train and measure on, in blocks that share no paragraph.

Without a file it is the prose that comes with Python itself, the topics of `help()`, which every
installation has. Another version of Python has somewhat other texts.
"""

import hashlib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.errors import DatasetError
from distill.tokenizer import TextTokenizer

BLOCK_CHARACTERS = 2000
"""A block ends with the first paragraph at or beyond this length."""

HELDOUT_EVERY = 10
"""One block of this many is held out, throughout the text, so that all topics are measured."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Text in two parts without a paragraph in common."""

    training: tuple[str, ...]
    """Blocks to train on."""

    heldout: tuple[str, ...]
    """Blocks to measure on."""

    digest: str
    """Of both parts: equal for equal texts."""


def load_corpus(path: Path | None) -> Corpus:
    """The blocks of a text file, or of the topics of Python's `help()`.

    Raises:
        DatasetError: the file, or this Python's topics, cannot be read, or have too little text.
    """
    name, texts = ("the topics of help()", help_topics()) if path is None else (path, [_read(path)])
    blocks = list(cut_blocks(texts))
    heldout = blocks[HELDOUT_EVERY // 2 :: HELDOUT_EVERY]
    if not heldout:
        raise DatasetError(
            f"{name}: must have {HELDOUT_EVERY // 2 + 1} or more blocks of {BLOCK_CHARACTERS} "
            f"characters, got {len(blocks)}"
        )
    training = [
        block for index, block in enumerate(blocks) if index % HELDOUT_EVERY != HELDOUT_EVERY // 2
    ]
    digest = hashlib.blake2b("\0".join([*training, "", *heldout]).encode(), digest_size=8)
    return Corpus(training=tuple(training), heldout=tuple(heldout), digest=digest.hexdigest())


def help_topics() -> list[str]:
    """What `help("…")` says about each topic of the language, by name.

    Raises:
        DatasetError: this Python was installed without them.
    """
    try:
        topics: Mapping[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ModuleNotFoundError:
        raise DatasetError(
            "this Python is installed without its help topics (pydoc_data); give a text file"
        ) from None
    return [topics[name] for name in sorted(topics)]


def cut_blocks(texts: Sequence[str]) -> Iterator[str]:
    """Blocks of whole paragraphs; the last block of a text may be short.

    A paragraph that occurred before is left out. Some paragraphs stand in several topics, and none
    may be held out in one block and trained on in another.
    """
    seen = set()
    for text in texts:
        block: list[str] = []
        for paragraph in text.split("\n\n"):
            words = " ".join(paragraph.split())
            if not words or words in seen:
                continue
            seen.add(words)
            block.append(paragraph.strip("\n"))
            if sum(map(len, block)) >= BLOCK_CHARACTERS:
                yield "\n\n".join(block)
                block = []
        if block:
            yield "\n\n".join(block)


def cut_sequences(
    tokenizer: TextTokenizer, blocks: Sequence[str], sequence_tokens: int
) -> list[list[int]]:
    """The token ids of all blocks, one after the other, in sequences of equal length.

    Equal, so that every batch has the same shape and is compiled once. What is left at the end is
    dropped.
    """
    token_ids = tokenizer.encode("\n\n".join(blocks))
    starts = range(0, len(token_ids) - sequence_tokens + 1, sequence_tokens)
    return [token_ids[start : start + sequence_tokens] for start in starts]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: is not UTF-8: {error.reason}") from None
