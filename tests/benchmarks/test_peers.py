"""The other sides' process and messages, with a worker that needs none of their packages."""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.process import Peer, PeerCommand, PeerError, skyrl_python, torch_python
from benchmarks.peers.protocol import SCORE, TRAIN, Task


@pytest.fixture
def peer():
    command = PeerCommand(
        name="peer",
        python=sys.executable,
        module="tests.benchmarks.counting_worker",
        dtype="float32",
    )
    peer = Peer(command, threads=1, is_verbose=False)
    yield peer
    peer.close()


def _task(**options: object) -> Task:
    sequences = [np.arange(3, dtype=np.int32), np.arange(5, dtype=np.int32)]
    return Task(kind=SCORE, sequences=sequences, options=options)


def test_a_task_arrives_as_it_was_sent(tmp_path: Path):
    targets = {"ids": [np.ones((3, 2), np.int32), np.zeros((5, 2), np.int32)]}
    sent = Task(kind=TRAIN, sequences=_task().sequences, options={"is_hard": True}, targets=targets)
    received = Task.read(sent.write(tmp_path / "task.npz"))
    assert received.kind == TRAIN
    assert received.options == {"is_hard": True}
    for name, arrays in (("ids", received.targets["ids"]), ("tokens", received.sequences)):
        expected = targets["ids"] if name == "ids" else sent.sequences
        for array, original in zip(arrays, expected, strict=True):
            np.testing.assert_array_equal(array, original)


def test_sub_batches_tile_the_sequences_and_bound_the_logits():
    task = Task(kind=SCORE, sequences=[np.zeros(1024, np.int32)] * 11, options={})
    small = [here.indices(11)[:2] for here in task.sub_batches(vocab_size=100)]
    assert small == [(0, 8), (8, 11)]
    large = [here.stop - here.start for here in task.sub_batches(vocab_size=151936)]
    assert large == [3, 3, 3, 2]


def test_a_worker_answers_with_its_own_seconds_and_digest(peer: Peer, tmp_path: Path):
    run = peer.prepare(tmp_path, _task())
    seconds, digest, process_bytes = run()
    assert 0 <= seconds < 60
    assert digest == 8
    assert process_bytes > 1 << 20


def test_a_model_is_loaded_once_for_many_tasks(peer: Peer, tmp_path: Path):
    for _ in range(2):
        run = peer.prepare(tmp_path, _task(wanted="loads"))
    assert run()[1] == 1
    run = peer.prepare(tmp_path / "another", _task(wanted="loads"))
    assert run()[1] == 2


def test_what_a_worker_prints_does_not_disturb_the_answers(peer: Peer, tmp_path: Path):
    assert peer.prepare(tmp_path, _task(wanted="noise"))()[1] == 8


def test_an_error_in_a_worker_is_told_and_it_goes_on(peer: Peer, tmp_path: Path):
    with pytest.raises(PeerError, match="peer: NotImplementedError: no such thing"):
        peer.prepare(tmp_path, _task(wanted="error"))
    assert peer.prepare(tmp_path, _task())()[1] == 8


def test_a_worker_that_dies_is_told_and_started_again(peer: Peer, tmp_path: Path):
    with pytest.raises(PeerError, match="ended with code 7"):
        peer.prepare(tmp_path, _task(wanted="death"))
    assert peer.prepare(tmp_path, _task())()[1] == 8


def test_an_interpreter_without_the_package_is_none(tmp_path: Path):
    assert torch_python(str(tmp_path / "no-python")) is None
    assert skyrl_python(str(tmp_path / "no-python")) is None
