"""Our conversion of the embedded GGUF file against Transformers' own reading of the same file."""

import numpy as np
import pytest
import torch
from tokenizers import Regex, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill.models.loading import load_model
from distill.models.references import embedded_gguf
from distill.models.write_directory import hf_tensors
from distill.tokenizer import TextTokenizer
from tests.support.parity_cases import FIXTURES, REAL_MODEL
from tests.support.tokenizer_cases import TEXTS

pytestmark = [pytest.mark.parity, pytest.mark.real_model]


def test_converted_weights_equal_those_transformers_reads() -> None:
    file = embedded_gguf()
    reference = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True
    )
    model = load_model(REAL_MODEL)
    # Parameters, not the state: a tied head is one tensor.
    expected = {name: parameter.detach() for name, parameter in reference.named_parameters()}
    own = dict(hf_tensors(model.config, model.parameters))
    assert own.keys() == expected.keys()
    for name, tensor in own.items():
        np.testing.assert_array_equal(tensor, expected[name].numpy(), err_msg=name)
    config = reference.config
    assert model.config.norm_epsilon == pytest.approx(config.rms_norm_eps)
    assert model.config.max_position_count == config.max_position_embeddings
    assert model.config.head_dim == config.head_dim
    assert model.config.rope_theta == config.rope_parameters["rope_theta"]


def test_rebuilt_tokenizer_equals_the_one_transformers_builds() -> None:
    file = embedded_gguf()
    reference = AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name, local_files_only=True
    )
    # Transformers does not read the file's `tokenizer.ggml.pre`. Its value, smollm, means in
    # llama.cpp: every number character stands alone, then GPT-2's rule.
    backend = reference.backend_tokenizer
    numbers = pre_tokenizers.Split(Regex(r"\p{N}"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([numbers, backend.pre_tokenizer])
    own: TextTokenizer = load_model(REAL_MODEL).tokenizer
    essay = (FIXTURES / "essay.txt").read_text(encoding="utf-8")
    differing = [
        text
        for text in (*TEXTS, essay)
        if own.encode(text) != reference(text, add_special_tokens=False)["input_ids"]
    ]
    assert differing == []
