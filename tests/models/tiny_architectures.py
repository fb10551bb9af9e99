"""Tiny random models of any causal architecture: the config of its class, with every size in it made small."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 24
TOO_MANY = 5_000_000  # parameters: a size was not made small

# Sizes by the names that the configs give them. A config without a name, or with None there, keeps what it has.
SIZES = {
    VOCABULARY: "vocab_size unpadded_vocab_size vocab_size_per_layer_input",
    16: "hidden_size d_model n_embd embed_dim word_embed_proj_dim embedding_size dim_model lru_width embedding_dim "
    "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size "
    "moe_shared_expert_intermediate_size router_hidden_size",
    32: "intermediate_size ffn_dim n_inner decoder_ffn_dim encoder_ffn_dim dim_ff dff ffn_hidden_size "
    "shared_intermediate_size mamba_d_ssm",
    2: "index_block_size num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers "
    "num_encoder_layers num_attention_heads n_head n_heads decoder_attention_heads encoder_attention_heads num_heads "
    "num_key_value_heads num_decoder_attention_heads num_encoder_attention_heads num_experts_per_tok moe_k moe_topk "
    "num_experts_per_token time_step_rank mamba_dt_rank linear_num_key_heads linear_num_value_heads linear_num_heads "
    "type_vocab_size swa_num_attention_heads swa_num_key_value_heads",
    8: "head_dim attention_head_size v_head_dim qk_head_dim dim_head global_head_dim q_lora_rank kv_lora_rank "
    "mamba_d_head chunk_size mamba_chunk_size linear_key_head_dim linear_value_head_dim linear_head_dim swa_head_dim "
    "index_head_dim index_n_heads o_lora_rank rel_extent laurel_rank mamba_head_dim",
    4: "qk_nope_head_dim qk_rope_head_dim num_experts num_local_experts n_routed_experts moe_num_experts state_size "
    "ssm_state_size mamba_d_state mamba_n_heads mamba_num_heads conv_kernel index_topk d_rel "
    "hidden_size_per_layer_input zero_expert_num rotary_dim hc_lowrank "
    "sliding_window sliding_window_size window_size attention_chunk_size keep_window_size",
    1: "max_window_layers index_topk_blocks n_shared_experts n_group topk_group num_shared_experts mamba_n_groups n_groups",
    64: "max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length",
    0: "bos_token_id eos_token_id pad_token_id decoder_start_token_id",
}  # fmt: skip

# Mechanisms that are off by default, or too far away for a few tokens.
SWITCHES = {"use_sliding_window": True}
# Changes of the logits after the output layer, strong enough to show.
LOGIT_CHANGES = {
    "final_logit_softcapping": 3.0,
    "logits_soft_cap": 3.0,
    "output_logit_soft_cap": 3.0,
    "logits_scaling": 0.5,
    "logit_scale": 0.5,
}
SMALL = 0.1  # standard deviation of weights as they are drawn
DROPOUT = 0.3  # in place of every dropout and jitter

HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
# What SIZES cannot know of an architecture.
MORE = {
    "axk1": {"qk_rope_head_dim": 8},
    "bailing_hybrid": HYBRID,
    "bamba": {"attn_layer_indices": [1]},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_v3": {"head_dim": 4},
    "deepseek_v4": {
        "o_groups": 2,
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 2},
    },
    "diffllama": {"attention_dropout": 0.0},
    "dory": {"num_hidden_layers": 3, "n_input_layers": 1, "n_output_layers": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [2, 1, 1],
            }
        }
    },
    "gemma3n_text": {"intermediate_size": 32, "num_hidden_layers": 4, "num_kv_shared_layers": 2},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": HYBRID,
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "inkling2_loop_text": {
        "num_hidden_layers": 4,
        "n_layers_per_attn_res_block": 1,
        "loop_layer_index_start": 1,
        "loop_layer_index_end": 3,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": HYBRID,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"head_dim": 4},
    "mamba2": {"num_heads": 4},
    "mimo_v2_flash": {"head_dim": 24, "num_key_value_heads": 1},
    "minimax": {"block_size": 4},
    "ministral": {"head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "qwen3_5_moe_text": HYBRID,
    "qwen3_5_text": HYBRID,
    "qwen3_next": HYBRID,
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"],
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
        "ngram_vocab_size_base": 100,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"axial_pos_embds_dim": [8, 8], "axial_pos_shape": [8, 8]},
    "roc_bert": {"shape_embed_dim": 8, "pronunciation_embed_dim": 8},
    "xmod": {"default_language": "en_XX"},
    "xlm": {"emb_dim": 16},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "ffn_round_up_to_multiple_of": 8},
    "youtu": {"head_dim": 4},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "num_hidden_layers": 3,
    },
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}


def sizes_of(config) -> dict:
    """The entries of SIZES that a config has, and the same for the configs inside it."""
    fields = {*config.to_dict(), *config.attribute_map}
    sizes = {}
    for value, names in SIZES.items():
        for name in names.split():
            if name in fields and isinstance(config.__dict__.get(name), int | str):
                sizes[name] = value
    for name, value in config.__dict__.items():
        if name in LOGIT_CHANGES | SWITCHES:
            sizes[name] = (LOGIT_CHANGES | SWITCHES)[name]
        elif isinstance(value, float) and ("drop" in name or "jitter" in name):
            sizes[name] = DROPOUT
    for name in config.sub_configs:
        inner = getattr(config, name, None)
        if inner is not None:
            sizes[name] = type(inner)(**sizes_of(inner) | MORE.get(inner.model_type, {}))
    return sizes


def tiny_config(model_type: str):
    """The config of an architecture with every size made small."""
    config = AutoConfig.for_model(model_type)
    sizes = sizes_of(config) | MORE.get(model_type, {})
    small = type(config)(**sizes)
    if hasattr(small, "is_decoder"):  # the classes that are encoders by default
        small.is_decoder = True
    return small


def tiny_causal_lm(model_type: str):
    """A causal language model with random weights."""
    config = tiny_config(model_type)
    with torch.device("meta"):  # a model that is not tiny would take gigabytes
        model = AutoModelForCausalLM.from_config(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count < TOO_MANY, f"{model_type} has {count:,} parameters"
    return enlarge_matrices(AutoModelForCausalLM.from_config(config))


@torch.no_grad()
def enlarge_matrices(model):
    """Larger weights, so that the model tells its inputs apart. Those that are large from the start may saturate."""
    for parameter in model.parameters():
        if parameter.dim() > 1 and parameter.std() < SMALL:
            parameter.mul_(5)
    return model.eval()
