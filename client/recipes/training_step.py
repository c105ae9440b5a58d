"""One training step: a batch and the optimizer."""

from concurrent.futures import Future

from client.batch_parts import Chunks
from client.recipes.batches import DistributionBatch, TeacherLink, Transfer, run_batch
from client.results import BatchResult, OptimStepResponse
from client.run import StudentRun
from client.settings import AdamW, Batch, PulledScoring


def train_step(
    *,
    run: StudentRun,
    teacher: TeacherLink,
    batch: DistributionBatch,
    minimised: Batch,
    top_k: int,
    temperature: float | None,
    adamw: AdamW,
) -> tuple[Transfer, OptimStepResponse]:
    """Train on a batch and apply its gradient; the step is on its way before the batch is answered.

    Args:
        run: what is trained.
        teacher: which teacher, and how its distributions travel.
        batch: from `align`.
        minimised: what is minimised.
        top_k: K.
        temperature: divides the teacher's logits.
        adamw: settings of the step.

    Raises:
        ServiceError: a refused batch or step changes nothing; without its batch no step is taken.
    """
    steps: list[Future[OptimStepResponse]] = []

    def submit(*, pull: PulledScoring | None = None, chunks: Chunks = ()) -> BatchResult:
        result = run.submit_forward_backward(batch.examples, minimised, pull=pull, chunks=chunks)
        steps.append(run.submit_optim_step(adamw, normalization="rows"))
        return result.result()

    transfer = run_batch(teacher, batch, top_k=top_k, temperature=temperature, submit=submit)
    return transfer, steps[0].result()
