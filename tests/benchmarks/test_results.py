import json
from pathlib import Path

from rich.console import Console

from benchmarks.cases import CASES
from benchmarks.results import CaseResult, print_table, read_json, updated, write_json

REQUIRED_FIELDS = {
    "name",
    "model",
    "ratio_naive",
    "ratio_torch_f32",
    "ratio_torch_bf16",
    "ratio_peer",
    "fraction_of_peak",
    "peak_bytes",
    "naive_peak_bytes",
    "compiles",
}

REQUIRED_NAMES = {
    "teacher_dense",
    "teacher_ragged",
    "teacher_completion_only",
    "teacher_shared_prefix",
    "student_lora_soft_dense",
    "student_lora_soft_ragged",
    "student_full_soft_dense",
    "head_memory",
    "codec",
    "sampling_batch8",
}


def test_the_file_is_a_list_of_objects_whose_missing_sides_are_null(tmp_path: Path):
    write_json([CaseResult(name="case", model="model", ratio_naive=2.0)], tmp_path / "results")
    (result,) = json.loads((tmp_path / "results").read_text())
    assert result.keys() >= REQUIRED_FIELDS
    assert result["ratio_naive"] == 2.0
    assert result["ratio_peer"] is None


def test_an_update_replaces_what_was_measured_anew_and_keeps_the_rest(tmp_path: Path):
    first = [CaseResult(name=name, model="model", ratio_naive=1.0) for name in ("a", "b")]
    write_json(first, tmp_path / "results")
    again = CaseResult(name="a", model="model", ratio_naive=2.0)
    other = CaseResult(name="a", model="another", ratio_naive=3.0)
    merged = updated(read_json(tmp_path / "results"), [again, other])
    assert merged == [again, first[1], other]
    assert read_json(tmp_path / "absent") == []


def test_all_cases_have_names_of_their_own_and_the_required_ones_are_among_them():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert set(names) >= REQUIRED_NAMES


def test_the_table_says_what_was_measured_and_leaves_out_what_was_not():
    console = Console(record=True, width=200)
    result = CaseResult(
        name="teacher_dense",
        model="tiny",
        ratio_naive=1.25,
        fraction_of_peak=0.8,
        tokens_per_second={"ours": 1234.0},
        peak_bytes=3 << 20,
        note="why",
    )
    print_table([result], console)
    text = console.export_text()
    for expected in ("teacher_dense", "tiny", "1.25", "80%", "1,234", "3 MiB", "why"):
        assert expected in text
    assert "None" not in text
