from benchmarks.work import FULL_PASSES, LORA_PASSES, SCORING_PASSES, Work, body_parameter_count
from distill.network.layer_kinds import LayerKind
from tests.support.tiny_models import tiny_config

CONFIG = tiny_config(
    hidden_size=4,
    intermediate_size=6,
    layer_count=2,
    head_count=2,
    key_value_head_count=1,
    head_dim=4,
    vocab_size=10,
)

# q 4·8, k and v 4·4 each, o 8·4; gate, up and down 4·6 each; two layers.
BODY = 2 * (32 + 16 + 16 + 32 + 3 * 24)
HEAD = 4 * 10


def test_the_bodys_parameters_are_those_of_its_projections():
    assert body_parameter_count(CONFIG) == BODY


def test_layers_of_several_kinds_count_each_as_its_own():
    narrow = LayerKind(name="narrow", intermediate_size=3)
    config = tiny_config(
        hidden_size=4,
        intermediate_size=6,
        layer_count=2,
        head_count=2,
        key_value_head_count=1,
        head_dim=4,
        vocab_size=10,
        period=(LayerKind(name="wide"), narrow),
    )
    assert body_parameter_count(config) == BODY - 3 * 12


def test_scoring_needs_two_operations_for_each_parameter_and_token():
    work = Work(body_tokens=7, head_rows=3, passes=SCORING_PASSES)
    assert work.flops(CONFIG) == 2 * (7 * BODY + 3 * HEAD)


def test_an_adapter_needs_four_and_full_training_six():
    tokens = {"body_tokens": 5, "head_rows": 5}
    assert Work(**tokens, passes=LORA_PASSES).flops(CONFIG) == 4 * 5 * (BODY + HEAD)
    assert Work(**tokens, passes=FULL_PASSES).flops(CONFIG) == 6 * 5 * (BODY + HEAD)
