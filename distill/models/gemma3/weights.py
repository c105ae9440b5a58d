"""Where Gemma 3's text weights are in Hugging Face and in GGUF files."""

from distill.models.weight_map import (
    ATTENTION_WEIGHTS,
    DENSE_MLP_WEIGHTS,
    INPUT_NORM,
    QUERY_KEY_NORMS,
    WeightMap,
    norm,
    same_in_all,
)

GEMMA3_WEIGHTS = WeightMap(
    layer_weights=same_in_all(
        INPUT_NORM,
        *ATTENTION_WEIGHTS,
        *QUERY_KEY_NORMS,
        norm(("attention_output_norm",), "post_attention_layernorm", "post_attention_norm"),
        norm(("post_attention_norm",), "pre_feedforward_layernorm", "ffn_norm"),
        *DENSE_MLP_WEIGHTS,
        norm(("mlp_output_norm",), "post_feedforward_layernorm", "post_ffw_norm"),
    ),
    # llama.cpp multiplies by the scale, so its converter adds the 1.
    gguf_norm_offset=1.0,
    # Of the models that also see, as the first releases and as Transformers 5 name them.
    text_prefixes={
        "language_model.model.": "model.",
        "language_model.lm_head.": "lm_head.",
        "model.language_model.": "model.",
    },
    skipped_prefixes=(
        "vision_tower.",
        "multi_modal_projector.",
        "model.vision_tower.",
        "model.multi_modal_projector.",
    ),
)
