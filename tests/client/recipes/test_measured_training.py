"""Measurements along a training: before, at even shares of it, and after."""

from client.recipes.batches import Targets, TeacherLink
from client.recipes.measured_training import CurvePoint, train_and_measure
from client.recipes.off_policy import OffPolicySettings
from client.student import StudentClient
from client.teacher import TeacherClient


def test_it_is_measured_before_along_the_way_and_at_the_end(
    student: StudentClient, teacher: TeacherClient
) -> None:
    seen: list[CurvePoint] = []
    trained = train_and_measure(
        student=student,
        run=student.create_run("run", lora=None),
        teacher=TeacherLink(client=teacher, name="main", targets=Targets.PULL),
        training=[[1, 2, 3, 4]],
        heldout=[[5, 6, 7]],
        settings=OffPolicySettings(step_count=8, sequences_per_step=1, top_k=3),
        measurement_count=4,
        on_point=seen.append,
    )
    assert [point.step for point in trained.points] == [0, 2, 4, 6, 8]
    assert list(trained.points) == seen
    assert [point.tokens for point in trained.points] == [0, 6, 12, 18, 24]
    assert trained.tokens_trained == 24
    assert trained.training_seconds == sum(step.step_seconds for step in trained.history) > 0
    assert trained.after.perplexity == trained.points[-1].perplexity
    assert trained.evaluation_seconds > 0
