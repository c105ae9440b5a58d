"""Whatever breaks between client and student: what the client counts is what was applied."""

import random
import threading
import uuid

import numpy as np
import pytest

from client.errors import (
    PredecessorFailedError,
    ServiceError,
    UncertainMutationError,
)
from client.settings import LoraConfig, batch_settings, token_example
from client.student import StudentClient
from tests.support.cutting_proxy import CuttingProxy
from tests.support.suites import slow
from tests.support.waiting import wait_until

HARD = batch_settings("cross_entropy")
REFUSED = token_example(np.arange(3, 12), target_offset=0, token_ids=np.full(9, 1 << 20))


def example(seed):
    ids = np.random.default_rng(seed).integers(0, 40, 60)
    return token_example(ids, target_offset=0, token_ids=ids)


class Training:
    """Batches of one handle, sent together, and how many the client takes for applied."""

    def __init__(self, run, chance):
        self._run = run
        self._chance = chance
        self.applied = 0
        self.uncertain = 0

    def round(self):
        """Send a few batches, some of them wrong or in too little time, and settle all."""
        futures = []
        try:
            for _ in range(self._chance.randint(1, 6)):
                is_wrong = self._chance.random() < 0.1
                examples = [REFUSED if is_wrong else example(self._chance.randrange(99))]
                seconds = self._chance.choice([0.05, 0.3, 20, 20, 20])
                futures.append(
                    self._run.submit_forward_backward(examples, HARD, timeout_seconds=seconds)
                )
        except (ServiceError, UncertainMutationError):
            pass  # not sent
        for future in futures:
            try:
                future.result()
                self.applied += 1
            except (ServiceError, PredecessorFailedError, UncertainMutationError):
                self.uncertain += 1
        self.applied += self._run.resynchronize(timeout_seconds=60)


@pytest.mark.parametrize(("seed", "rounds"), [(1, 12), slow(2, 120), slow(3, 120)])
def test_what_the_client_counts_is_what_the_student_applied(in_process, seed, rounds):
    chance, ended = random.Random(seed), threading.Event()
    with (
        CuttingProxy(in_process.address) as proxy,
        StudentClient(proxy.address, timeout_seconds=60) as student,
    ):
        run = student.create_run(f"cut-{uuid.uuid4().hex[:8]}", lora=LoraConfig(rank=2))
        training = Training(run, chance)
        pauses = random.Random(seed)

        def cut():
            while not ended.wait(pauses.uniform(0.02, 0.5)):
                proxy.cut()

        cutter = threading.Thread(target=cut)
        cutter.start()
        try:
            for _ in range(rounds):
                training.round()
        finally:
            ended.set()
            cutter.join(5)
    state = in_process.runs.get(run.run_id).sequencer.committed
    assert training.applied == state.sequence_number == state.state.accumulated_batches
    assert training.applied > rounds / 2
    assert training.uncertain
    requests = in_process.server._requests
    wait_until(lambda: (requests.budget.held, requests.in_progress) == (0, 0))
