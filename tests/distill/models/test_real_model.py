"""SmolLM2 135M out of its PyPI package: the embedded default."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.models.loading import LoadedModel, load_model
from distill.network.functional import (
    cached_hidden_states,
    head_kernel,
    hidden_states,
    init_cache,
)
from distill.tokenizer import TextTokenizer

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model("smollm2-135m")


@pytest.fixture(scope="module")
def tokenizer(model: LoadedModel) -> TextTokenizer:
    return model.tokenizer


def test_it_is_what_its_makers_say(model: LoadedModel) -> None:
    assert model.parameter_count == 134_515_008
    assert model.tokenizer.vocab_size == model.config.vocab_size == 49152
    assert model.tokenizer.end_token_ids == (2,)
    assert model.name == "smollm2-135m"


def test_the_capital_of_france_is_paris_with_and_without_a_cache(model: LoadedModel) -> None:
    kernel = head_kernel(model.config, model.parameters)
    prompt = model.tokenizer.encode("The capital of France is")
    ids = jnp.asarray([prompt])
    states = jax.jit(hidden_states, static_argnums=0)(model.graph, model.parameters, ids)
    logits = np.asarray(states[0] @ kernel.T)
    assert model.tokenizer.token_text(int(logits[-1].argmax())) == " Paris"
    cache = init_cache(model.config, 1, 8, "float32")
    forward = jax.jit(cached_hidden_states, static_argnums=0)
    for position in range(len(prompt)):
        at = slice(position, position + 1)
        cached, cache = forward(
            model.graph, model.parameters, ids[:, at], jnp.asarray([[position]]), cache
        )
        np.testing.assert_allclose(cached[0, 0] @ kernel.T, logits[position], atol=1e-3)


# The model's own vocabulary lacks the bytes of six control characters and of the planes 4 to 11,
# which Unicode has not assigned: there is no id to encode them with.
ABSENT_CONTROLS = "\x04\x06\x13\x14\x16\x1d"
CHARACTERS = st.characters(
    max_codepoint=0x3FFFF, exclude_categories=("Cs",), exclude_characters=ABSENT_CONTROLS
)


@given(text=st.text(CHARACTERS))
def test_text_survives_its_tokenizer(tokenizer: TextTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


def test_digits_stand_alone_and_special_tokens_are_single(tokenizer: TextTokenizer) -> None:
    pieces = [tokenizer.token_text(token_id) for token_id in tokenizer.encode("In 2024:  ok")]
    assert pieces == ["In", " ", "2", "0", "2", "4", ":", " ", " ok"]
    assert tokenizer.encode("<|endoftext|><|im_start|><|im_end|>") == [0, 1, 2]


def test_chat_has_the_default_system_prompt(model: LoadedModel) -> None:
    text = model.tokenizer.render_chat([{"role": "user", "content": "Hi"}])
    assert text == (
        "<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_loading_from_the_cache_takes_seconds(model: LoadedModel) -> None:
    began = time.process_time()
    again = load_model("smollm2-135m")
    # Processor time of this process: others on the machine do not count. Two seconds are usual.
    assert time.process_time() - began < 8
    assert again.weights_version == model.weights_version
