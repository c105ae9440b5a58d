"""GGUF to Hugging Face form: the same model, the same tokenizer, all or nothing."""

import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from distill.errors import AlreadyExistsError, ModelError
from distill.formats.gguf_file import GgufFile
from distill.formats.gguf_tokenizer import PRE_TOKENIZERS, rebuild_tokenizer
from distill.models import convert as conversion
from distill.models import sharded_weights
from distill.models.convert import convert, convert_once
from distill.models.loading import load_model
from distill.network.config import LayerAttention, LinearRopeScaling
from tests.support.gguf_files import tiny_gguf_config, write_tiny_gguf
from tests.support.tiny_models import LLAMA3_ROPE, tiny_tensors, tiny_tokenizer

GGUF_FILE = GGMLQuantizationType


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("tied_head", [True, False])
@pytest.mark.parametrize("kind", [GGUF_FILE.F32, GGUF_FILE.F16, GGUF_FILE.Q8_0, GGUF_FILE.Q4_1])
def test_converted_model_is_the_written_one(
    tmp_path: Path, family: str, tied_head: bool, kind: GGMLQuantizationType
) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", family, tensor_type=kind, tied_head=tied_head)
    model = load_model(str(path), cache_dir=tmp_path / "cache")
    config = tiny_gguf_config(family, tied_head=tied_head)
    assert model.config == replace(config, known_vocab_size=model.tokenizer.vocab_size)
    assert model.name == "m"
    (directory,) = (tmp_path / "cache" / "models").glob("m-*")
    converted = load_file(directory / "model.safetensors")
    written = tiny_tensors(config)
    assert set(converted) == set(written)
    for name, tensor in written.items():
        # Quantisation works on rows, so that it commutes with the reordering of rows.
        rounded = gguf.quantize(tensor, kind) if tensor.ndim == 2 else tensor
        expected = gguf.dequantize(rounded, kind) if tensor.ndim == 2 else tensor
        assert converted[name].dtype == np.float32
        np.testing.assert_array_equal(converted[name], expected)


OTHER_FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen2": ({}, {}),
    "smollm3": (
        {
            "layer_count": 4,
            "layer_attention": (*[LayerAttention()] * 3, LayerAttention(rotary="none")),
        },
        {},
    ),
    "gemma3_text": (
        {
            "layer_count": 7,
            "query_scalar": 16.0,
            "local_rope_theta": 10000.0,
            "rope_scaling": LinearRopeScaling(factor=8.0),
            "layer_attention": (
                *[LayerAttention(window=24, rotary="local")] * 5,
                LayerAttention(),
                LayerAttention(window=24, rotary="local"),
            ),
        },
        {
            "attention.sliding_window": 24,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
    ),
}
"""Fields of ModelConfig, and what of them stands in the metadata."""


@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_what_llama_cpp_changes_in_a_family_is_undone(tmp_path: Path, family: str) -> None:
    overrides, metadata = OTHER_FAMILIES[family]
    overrides = {"tied_head": True, **overrides}
    path = write_tiny_gguf(tmp_path / "m.gguf", family, metadata=metadata, **overrides)
    model = load_model(str(path), cache_dir=tmp_path / "cache", mask_padded_vocabulary=False)
    config = tiny_gguf_config(family, **overrides)
    assert model.config == config
    (directory,) = (tmp_path / "cache" / "models").glob("m-*")
    converted = load_file(directory / "model.safetensors")
    written = tiny_tensors(config)
    assert set(converted) == set(written)
    for name, tensor in written.items():
        expected = tensor.astype(np.float16) if tensor.ndim == 2 else tensor
        # A norm's 1 that was added and taken away costs its last digits.
        np.testing.assert_allclose(converted[name], expected, rtol=0, atol=1e-7)


def test_rebuilt_tokenizer_is_the_written_one(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf")
    tokenizer = load_model(str(path), cache_dir=tmp_path).tokenizer
    original = tiny_tokenizer(512)
    text = "<|im_start|>Zwölf Boxkämpfer,  2048\n\tfragen: 🙂<|im_end|>"
    assert tokenizer.encode(text) == original.encode(text).ids
    assert tokenizer.vocab_size == original.get_vocab_size() < tiny_gguf_config().vocab_size
    assert tokenizer.end_token_ids == (2,)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.render_chat([{"role": "user", "content": "hi"}]).startswith("<|im_start|>user")


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("gguf")
    return {
        pre: rebuild_tokenizer(GgufFile(write_tiny_gguf(directory / f"{pre}.gguf", pre=pre)))
        for pre in PRE_TOKENIZERS
    }


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
@given(text=st.text())
def test_text_survives_every_pre_tokenizer(rebuilt: dict[str, Any], pre: str, text: str) -> None:
    tokenizer = rebuilt[pre]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    # Qwen's tokenizer composes characters before it splits them.
    expected = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    assert tokenizer.decode(ids, skip_special_tokens=False) == expected


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("smollm", ["In", "Ġ", "2", "0", "2", "4", ",", "Ġit", "'s", "ĠĠ", "Ġok"]),
        ("gpt-2", ["In", "Ġ2024", ",", "Ġit", "'s", "ĠĠ", "Ġok"]),
        ("llama-bpe", ["In", "Ġ", "202", "4", ",", "Ġit", "'s", "ĠĠ", "Ġok"]),
        ("qwen2", ["In", "Ġ", "2", "0", "2", "4", ",", "Ġit", "'s", "ĠĠ", "Ġok"]),
    ],
)
def test_words_are_split_by_the_files_rules(
    rebuilt: dict[str, Any], pre: str, words: list[str]
) -> None:
    split = rebuilt[pre].pre_tokenizer.pre_tokenize_str("In 2024, it's   ok")
    assert [word for word, _ in split] == words


def test_llama3_adds_its_bos_when_special_tokens_are_asked_for(rebuilt: dict[str, Any]) -> None:
    plain = rebuilt["gpt-2"].encode("hi").ids
    assert rebuilt["llama-bpe"].encode("hi").ids == [1, *plain]


def test_llama3_scaling_is_recovered_from_its_divisors(tmp_path: Path) -> None:
    # head_dim 64, theta 500000, as Llama 3.2 1B has them.
    sizes = {"head_dim": 64, "head_count": 2, "key_value_head_count": 1, "rope_theta": 500000.0}
    exponents = np.arange(0, 64, 2) / 64
    wavelengths = 2 * np.pi * 500000.0**exponents
    share = np.clip((8192 / wavelengths - 1) / 3, 0, 1)
    divisors = (1 / ((1 - share) / 32 + share)).astype(np.float32)
    path = write_tiny_gguf(
        tmp_path / "m.gguf", extra_tensors={"rope_freqs.weight": divisors}, **sizes
    )
    scaling = load_model(str(path), cache_dir=tmp_path).config.rope_scaling
    assert scaling is not None
    np.testing.assert_allclose(scaling.factor, 32.0, rtol=1e-6)
    assert scaling.original_position_count == 8192
    path = write_tiny_gguf(
        tmp_path / "other.gguf", extra_tensors={"rope_freqs.weight": divisors**2}, **sizes
    )
    with pytest.raises(ModelError, match="only the rope scaling of Llama 3"):
        load_model(str(path), cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"metadata": {"rope.scaling.type": "yarn"}}, "rope.scaling.type 'yarn'"),
        ({"metadata": {"expert_count": 8}}, "expert_count 8"),
        ({"metadata": {"attention.sliding_window": 512}}, "attention.sliding_window 512"),
        ({"metadata": {"rope.dimension_count": 8}}, "rope.dimension_count 8"),
        ({"pre": "tekken"}, "tokenizer.ggml.pre 'tekken'"),
        (
            {"extra_tensors": {"blk.0.attn_q.bias": np.zeros(64, np.float32)}},
            "unknown tensor blk.0.attn_q.bias",
        ),
    ],
)
def test_unsupported_file_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", **changes)
    with pytest.raises(ModelError, match=re.escape(named)):
        convert(str(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"not a model, but long enough to be looked at")
    with pytest.raises(ModelError, match=r"m\.gguf is not a readable GGUF file"):
        convert(str(path), tmp_path / "out")
    with pytest.raises(ModelError, match=r"'absent\.gguf' is not a \.gguf file"):
        convert(str(tmp_path / "absent.gguf"), tmp_path / "out")


def test_truncated_file_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"m\.gguf is not a readable GGUF file"):
        convert(str(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*.partial"))


def test_conversion_does_not_overwrite(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf")
    (tmp_path / "out").mkdir()
    lines: list[str] = []
    convert(str(path), tmp_path / "out", lines.append)
    assert lines[0] == "reading m.gguf"
    assert lines[-1] == "done"
    with pytest.raises(AlreadyExistsError, match="'out' exists"):
        convert(str(path), tmp_path / "out")


def test_shards_hold_the_same_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf")
    whole = load_model(str(path), cache_dir=tmp_path / "whole")
    monkeypatch.setattr(conversion, "MAX_SHARD_BYTES", 60_000)
    convert(str(path), tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("model-*-of-*.safetensors"))) > 1
    sharded = load_model(str(tmp_path / "shards"))
    assert sharded.weights_version == whole.weights_version
    jax.tree.map(np.testing.assert_array_equal, sharded.parameters, whole.parameters)


def test_second_use_converts_nothing_and_another_file_is_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf")
    first = convert_once(path, tmp_path / "cache")
    path = write_tiny_gguf(tmp_path / "m.gguf", tensor_type=GGUF_FILE.Q8_0)
    assert convert_once(path, tmp_path / "cache") != first
    path = write_tiny_gguf(tmp_path / "m.gguf")

    def fail(*_arguments: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(conversion, "_write_directory", fail)
    assert convert_once(path, tmp_path / "cache") == first


def test_failed_conversion_leaves_no_model_and_the_next_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf")
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(sharded_weights, "write_file", _raise_full_disk)
        with pytest.raises(OSError, match="no space"):
            convert_once(path, cache)
    assert not list(cache.glob("[!.]*"))
    assert not list(cache.glob(".*.partial"))
    assert load_model(str(convert_once(path, cache))).parameter_count > 0


def _raise_full_disk(*_arguments: object, **_options: object) -> None:
    raise OSError("no space left")


KILLED_CONVERSION = """
import os, sys
from pathlib import Path
from distill.models import convert, sharded_weights
sharded_weights.write_file = lambda *_, **__: os.kill(os.getpid(), 9)
convert.convert_once(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_killed_conversion_is_done_again(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf")
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", KILLED_CONVERSION, str(path), str(cache)]
    assert subprocess.run(command, check=False).returncode == -9
    assert list(cache.glob(".*.partial")), "the kill came before the conversion began"
    directory = convert_once(path, cache)
    assert load_model(str(directory)).parameter_count > 0
    assert not list(cache.glob(".*.partial"))


def test_those_who_ask_at_once_share_one_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf")
    began = []
    write_directory = conversion._write_directory

    def counted(*arguments: Any) -> None:
        began.append(1)
        write_directory(*arguments)

    monkeypatch.setattr(conversion, "_write_directory", counted)
    answers: list[Path] = []
    threads = [
        threading.Thread(target=lambda: answers.append(convert_once(path, tmp_path / "cache")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(began) == 1
    assert len(answers) == 4
    assert len(set(answers)) == 1


def test_conversion_needs_no_jax() -> None:
    code = (
        "import sys; from distill.models import resolve, pruning; import distill.tokenizer; "
        "sys.exit(any(name.split('.')[0] in ('jax', 'flax') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_llama3_scaling_of_other_positions_is_not_mistaken(tmp_path: Path) -> None:
    """The recovery assumes 8192 original positions; divisors of 64 do not pass for them."""
    exponents = np.arange(0, 16, 2) / 16
    wavelengths = 2 * np.pi * 10000.0**exponents
    share = np.clip((LLAMA3_ROPE.original_position_count / wavelengths - 1) / 3, 0, 1)
    divisors = (1 / ((1 - share) / 8 + share)).astype(np.float32)
    path = write_tiny_gguf(tmp_path / "m.gguf", extra_tensors={"rope_freqs.weight": divisors})
    with pytest.raises(ModelError, match="only the rope scaling of Llama 3"):
        convert(str(path), tmp_path / "out")
