"""Exports as Transformers and PEFT read them: the same logits; and LoRA gradients against PEFT."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from distill.models.loading import LoadedModel, load_model
from distill.models.write_directory import write_hf_directory, write_peft_adapter
from distill.network.adapters import (
    ALL_TARGETS,
    LoraSpec,
    init_adapter,
    model_targets,
    scale_adapter,
)
from distill.network.functional import HEAD_TARGET, Adapter
from tests.parity.reference import (
    load_reference,
    load_reference_tokenizer,
    reference_gradients,
    reference_log_probs,
)
from tests.support.comparison import GRADIENT_TOLERANCE, relative_errors
from tests.support.own_model import own_adapter_gradients, own_log_probs
from tests.support.parity_cases import TINY_CASES, TinyCase

pytestmark = [
    pytest.mark.parity,
    # PEFT calls what Transformers has renamed.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # PEFT warns of merging an adapter into a tied head, which would change the embedding.
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]

TOLERANCE = 1e-4
Record = Callable[[str, float], float]
Written = tuple[TinyCase, Path, LoadedModel]

LAYER_TARGETS = tuple(target for target in ALL_TARGETS if target != HEAD_TARGET)

SPECS = {
    "all targets": LoraSpec(rank=5, alpha=12.5, target_modules=LAYER_TARGETS, seed=21),
    "with the head": LoraSpec(rank=3, alpha=6.0, target_modules=ALL_TARGETS, seed=23),
    "two targets": LoraSpec(rank=1, alpha=1.0, target_modules=("q_proj", "down_proj"), seed=22),
}


@pytest.fixture(
    scope="module",
    params=[
        "llama-untied",
        "llama3-rope",
        "qwen2",
        "qwen3",
        "gemma3",
        "qwen3-moe-mixed",
        "qwen3_5",
    ],
)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    case = TINY_CASES[request.param]
    directory = case.write(tmp_path_factory.mktemp(case.name))
    return case, directory, load_model(str(directory))


def spec_for(model: LoadedModel, name: str) -> LoraSpec:
    """With the targets that the model has: experts have no adapters."""
    known = model_targets(model.config)
    targets = tuple(target for target in SPECS[name].target_modules if target in known)
    return dataclasses.replace(SPECS[name], target_modules=targets)


def trained_adapter(model: LoadedModel, spec: LoraSpec) -> Adapter:
    """An adapter with b other than zero, as after training."""
    key = jax.random.key(spec.seed + 1)
    return {
        target: {"a": pair["a"], "b": 0.1 * jax.random.normal(key, pair["b"].shape)}
        for target, pair in init_adapter(model.config, spec, jnp.float32).items()
    }


@pytest.mark.parametrize("max_shard_bytes", [1 << 30, 60_000])
def test_exported_weights_give_the_same_logits(
    written: Written, tmp_path: Path, max_shard_bytes: int, record_error: Record
) -> None:
    case, _, model = written
    # Other weights than those that were loaded: an export that copied the files would pass.
    parameters = jax.tree.map(lambda leaf: leaf * 1.05, model.parameters)
    write_hf_directory(
        model.config, parameters, model.tokenizer, tmp_path, max_shard_bytes=max_shard_bytes
    )
    own = own_log_probs(load_model(str(tmp_path)), case.token_ids())
    expected = reference_log_probs(load_reference(tmp_path), case.token_ids())
    error = float(np.abs(own - expected).max())
    assert record_error(f"{case.name}: exported weights, nats", error) < TOLERANCE
    assert np.abs(own - own_log_probs(model, case.token_ids())).max() > 0.01


def test_exported_tokenizer_and_end_tokens_are_the_same(written: Written, tmp_path: Path) -> None:
    _, _, model = written
    write_hf_directory(model.config, model.parameters, model.tokenizer, tmp_path)
    reference = load_reference_tokenizer(tmp_path)
    messages = [{"role": "user", "content": "The  student's 17 tokens, naïve 東京."}]
    assert reference.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    ) == model.tokenizer.encode_chat(messages)
    assert reference.eos_token == model.tokenizer.eos_token
    end_ids = load_reference(tmp_path).generation_config.eos_token_id
    assert end_ids == list(model.tokenizer.end_token_ids)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_export_is_read_as_its_own_type(
    written: Written, tmp_path: Path, dtype: str
) -> None:
    case, _, model = written
    write_hf_directory(model.config, model.parameters, model.tokenizer, tmp_path, dtype)
    as_stored = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto", local_files_only=True)
    assert as_stored.dtype == getattr(torch, dtype)
    own = own_log_probs(load_model(str(tmp_path)), case.token_ids())
    expected = reference_log_probs(load_reference(tmp_path), case.token_ids())
    np.testing.assert_allclose(own, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("spec_name", SPECS)
def test_peft_reads_the_adapter_and_gives_the_same_logits(
    written: Written, tmp_path: Path, spec_name: str, record_error: Record
) -> None:
    case, directory, model = written
    spec = spec_for(model, spec_name)
    adapter = trained_adapter(model, spec)
    write_peft_adapter(adapter, spec, model.config, str(directory), tmp_path)
    adapted = peft.PeftModel.from_pretrained(load_reference(directory), tmp_path).eval()
    own = own_log_probs(model, case.token_ids(), scale_adapter(adapter, spec.scale))
    expected = reference_log_probs(adapted, case.token_ids())
    error = float(np.abs(own - expected).max())
    assert record_error(f"{case.name}: PEFT adapter, {spec_name}, nats", error) < TOLERANCE
    assert np.abs(own - own_log_probs(model, case.token_ids())).max() > 0.01


def test_peft_finds_the_base_model_by_the_name_in_the_adapter(
    written: Written, tmp_path: Path
) -> None:
    case, directory, model = written
    spec = spec_for(model, "two targets")
    adapter = trained_adapter(model, spec)
    write_peft_adapter(adapter, spec, model.config, str(directory), tmp_path)
    # As in `load_reference`: torch's grouped product wants widths that are multiples of 4.
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, experts_implementation="eager"
    ).eval()
    np.testing.assert_allclose(
        own_log_probs(model, case.token_ids(), scale_adapter(adapter, spec.scale)),
        reference_log_probs(adapted, case.token_ids()),
        rtol=0,
        atol=TOLERANCE,
    )


@pytest.mark.parametrize("loss", ["hard", "soft"])
def test_adapter_gradients_equal_those_of_peft(
    written: Written, tmp_path: Path, loss: str, record_error: Record
) -> None:
    case, directory, model = written
    spec = spec_for(model, "all targets")
    adapter = trained_adapter(model, spec)
    targets = case.targets()[loss]
    write_peft_adapter(adapter, spec, model.config, str(directory), tmp_path)
    trainable = peft.PeftModel.from_pretrained(
        load_reference(directory), tmp_path, is_trainable=True
    ).eval()
    expected = reference_gradients(trainable, case.token_ids(), targets)
    gradients = own_adapter_gradients(model, adapter, spec.scale, case.token_ids(), targets)
    # A gradient has the shapes of an adapter, so that the export names its tensors as PEFT does.
    write_peft_adapter(gradients, spec, model.config, "", tmp_path)
    own = {
        name.replace(".weight", ".default.weight"): tensor
        for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items()
    }
    errors = relative_errors(own, expected)
    record_error(f"{case.name}: LoRA gradients of the {loss} loss, relative", max(errors.values()))
    assert {name: error for name, error in errors.items() if error > GRADIENT_TOLERANCE} == {}
