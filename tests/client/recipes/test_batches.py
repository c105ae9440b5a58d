import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.recipes.batches import AlignedSequence, align, shuffled_batches

TOKENS = st.lists(st.integers(0, 99), min_size=1, max_size=9)


@given(student=TOKENS, teacher=TOKENS, completion=TOKENS)
def test_both_sides_predict_the_same_token_in_every_row(
    student: list[int], teacher: list[int], completion: list[int]
) -> None:
    batch = align(
        [AlignedSequence(student_prompt=student, teacher_prompt=teacher, completion=completion)]
    )
    (example,), (prompt,) = batch.examples, batch.prompts
    input_tokens, targets = example.input_tokens.values, example.distribution_targets
    assert targets.row_count == len(completion)
    assert example.target_offset + targets.row_count == len(input_tokens)
    assert prompt.score_from == targets.prompt_offset
    assert targets.prompt_offset + targets.row_count == len(prompt.token_ids.values)
    student_text = [*student, *completion]
    for row in range(targets.row_count):
        # Teacher row i is about token i; target row t is about the token after position t.
        assert prompt.token_ids.values[targets.prompt_offset + row] == completion[row]
        assert student_text[example.target_offset + row + 1] == completion[row]
        assert list(input_tokens) == student_text[:-1]
    assert batch.teacher_token_count == len(teacher) + len(completion)


@pytest.mark.parametrize("empty", ["student_prompt", "teacher_prompt", "completion"])
def test_an_empty_part_is_named(empty: str) -> None:
    parts = {"student_prompt": [1], "teacher_prompt": [1], "completion": [1], empty: []}
    with pytest.raises(ValueError, match=rf"sequences\[0\].{empty}"):
        align([AlignedSequence(**parts)])


@given(count=st.integers(1, 12), batch_size=st.integers(1, 15), seed=st.integers(0, 5))
def test_an_epoch_holds_every_index_once(count: int, batch_size: int, seed: int) -> None:
    batches = list(itertools.islice(shuffled_batches(count, batch_size, seed), 2 * count))
    assert {len(batch) for batch in batches} == {batch_size}
    order = [index for batch in batches for index in batch]
    for start in range(0, len(order) - count + 1, count):
        assert sorted(order[start : start + count]) == list(range(count))
    again = list(itertools.islice(shuffled_batches(count, batch_size, seed), 2 * count))
    assert again == batches
