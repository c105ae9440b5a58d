"""An export is pulled from the device as it is read, one tensor in memory at a time."""

import tempfile
import tracemalloc
import uuid
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import load

from client.settings import LoraConfig
from distill.models.write_directory import write_hf_directory, write_peft_adapter
from distill.network.adapters import LoraSpec, init_adapter
from distill.network.functional import build_graph
from student_service.runs.caller import Caller
from student_service.runs.weight_files import export_files

SPEC = LoraSpec(rank=2, alpha=4.0, target_modules=("q_proj", "down_proj"), seed=1)


def caller():
    return Caller(
        remaining_seconds=lambda: 60.0, is_active=lambda: True, on_end=lambda _callback: True
    )


@pytest.fixture(params=["an adapter", "a whole model"])
def export(request, in_process):
    """The run's LoRA, what it has trained, and what writes that to a directory."""
    model = in_process.model
    if request.param == "an adapter":
        adapter = init_adapter(model.config, SPEC, np.float32)
        return SPEC, adapter, partial(write_peft_adapter, adapter, SPEC, model.config, model.name)
    write = partial(write_hf_directory, model.config, model.parameters, model.tokenizer)
    return None, model.parameters, write


def test_the_files_are_those_that_are_written_to_a_directory(in_process, export, tmp_path):
    lora, trainable, write = export
    run_piece = partial(caller().run, in_process.queue)
    files = export_files(in_process.model, lora, trainable, run_piece)
    sizes = {file.name: file.byte_count for file in files}
    contents = {file.name: b"".join(file.pieces) for file in files}
    write(tmp_path)
    assert contents == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sizes == {name: len(content) for name, content in contents.items()}


def test_a_tensor_is_a_piece_of_its_own_on_the_device(in_process, export):
    lora, trainable, _ = export
    fetched = []

    def run_piece(function):
        fetched.append(function)
        return in_process.queue.run(function)

    files = export_files(in_process.model, lora, trainable, run_piece)
    assert fetched == []
    weights = next(file for file in files if file.name.endswith(".safetensors"))
    assert len(load(b"".join(weights.pieces))) == len(fetched)


def test_nothing_is_written_to_a_temporary_directory(student, monkeypatch, tmp_path):
    run = student.create_run(f"run-{uuid.uuid4().hex[:8]}", lora=LoraConfig(rank=2))
    genuine = tempfile.mkdtemp
    made = []

    def watched(*arguments, **options):
        made.append(options.get("dir"))
        return genuine(*arguments, **options)

    monkeypatch.setattr(tempfile, "mkdtemp", watched)
    run.export_weights(tmp_path / "exported")
    # The client's own, beside what it writes.
    assert made == [tmp_path]


def test_the_peak_of_an_export_of_all_weights_is_one_tensor(in_process):
    config = replace(in_process.model.config, intermediate_size=1 << 15, layer_count=8)
    _, shapes = build_graph(config, np.float32)
    weights = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    model = SimpleNamespace(config=config, tokenizer=in_process.model.tokenizer, name="large")
    ends = []  # gRPC keeps the callbacks until a call ends

    def keep(callback):
        ends.append(callback)
        return True

    reader = Caller(remaining_seconds=lambda: 60.0, is_active=lambda: True, on_end=keep)
    files = export_files(model, None, weights, partial(reader.run, in_process.queue))
    tensor_bytes = 4 * config.hidden_size * config.intermediate_size
    tracemalloc.start()
    try:
        total = sum(len(piece) for file in files for piece in file.pieces)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total > 3 * config.layer_count * tensor_bytes
    assert tensor_bytes > 4 << 20
    assert peak < 1.5 * tensor_bytes


def test_each_layer_has_its_own_matrices(in_process):
    adapter = jax.tree.map(
        lambda leaf: leaf + 1, init_adapter(in_process.model.config, SPEC, np.float32)
    )
    files = export_files(in_process.model, SPEC, adapter, lambda function: function())
    tensors = load(b"".join(files[1].pieces))
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    np.testing.assert_array_equal(tensors[name], np.asarray(adapter["q_proj"]["b"])[1].T)
