"""Writes tiny checkpoints with random weights, and the logits that HuggingFace transformers gives for them.

    python scripts/family-checkpoints.py FOLDER
    SPARSEGPT_FAMILIES=FOLDER cargo test -p sparsegpt-models --test it further -- --nocapture

Needs torch, transformers (5.23 was used) and safetensors. One folder a case: config.json, model.safetensors,
expected.safetensors (tokens, logits, where sequences are padded attention_mask, for T5 decoder_tokens), as the golden
families have them.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

SIZES = dict(vocab_size=256, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
             bos_token_id=1, eos_token_id=2, pad_token_id=0)
LLAMA = dict(SIZES, intermediate_size=160, num_key_value_heads=2, max_position_embeddings=128)
MOE = dict(LLAMA, moe_intermediate_size=48, num_experts=6, num_experts_per_tok=2)
NEOX = dict(SIZES, intermediate_size=160, max_position_embeddings=128)
OPT = dict(SIZES, ffn_dim=160, max_position_embeddings=128, word_embed_proj_dim=64)
GPT2 = dict(SIZES, n_positions=128)
BERT = dict(SIZES, intermediate_size=160, max_position_embeddings=128)
T5 = dict(vocab_size=256, d_model=64, d_kv=16, d_ff=160, num_layers=3, num_heads=4, pad_token_id=0,
          decoder_start_token_id=0)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32, rope_theta=10000.0)
LONG = dict(rope_type="longrope", rope_theta=10000.0)

CASES = {
    "qwen3": ("qwen3", dict(LLAMA, head_dim=16)),
    "qwen3_window_bias": ("qwen3", dict(LLAMA, head_dim=24, attention_bias=True, use_sliding_window=True,
                                        sliding_window=8, max_window_layers=1)),
    "llama_biases": ("llama", dict(LLAMA, attention_bias=True, mlp_bias=True)),
    "gemma_grouped": ("gemma", dict(LLAMA, head_dim=32, hidden_act="gelu")),
    "gpt_neox_sequential": ("gpt_neox", dict(NEOX, use_parallel_residual=False, rotary_pct=0.5, rotary_emb_base=5000)),
    "gpt_neox_no_bias_tied": ("gpt_neox", dict(NEOX, attention_bias=False, tie_word_embeddings=True)),
    "opt_no_bias": ("opt", dict(OPT, enable_bias=False, layer_norm_elementwise_affine=False)),
    "opt_gelu_untied": ("opt", dict(OPT, activation_function="gelu", tie_word_embeddings=False)),
    "bloom_6_heads": ("bloom", dict(SIZES, hidden_size=96, num_attention_heads=6)),
    "bloom_post_layernorm": ("bloom", dict(SIZES, num_attention_heads=8,
                                           apply_residual_connection_post_layernorm=True)),
    "gpt2_untied_scaled": ("gpt2", dict(GPT2, tie_word_embeddings=False, n_inner=100,
                                        scale_attn_by_inverse_layer_idx=True)),
    "gpt2_unscaled": ("gpt2", dict(GPT2, scale_attn_weights=False)),
    "gptj_inner": ("gptj", dict(GPT2, rotary_dim=4, n_inner=100)),
    "mixtral_window": ("mixtral", dict(LLAMA, num_local_experts=5, num_experts_per_tok=3, sliding_window=16)),
    "qwen2_moe": ("qwen2_moe", dict(MOE, shared_expert_intermediate_size=80, mlp_only_layers=[1])),
    "qwen2_moe_normalized": ("qwen2_moe", dict(MOE, shared_expert_intermediate_size=80, norm_topk_prob=True,
                                               decoder_sparse_step=2)),
    "qwen3_moe": ("qwen3_moe", dict(MOE, head_dim=16, norm_topk_prob=True)),
    "qwen3_moe_step": ("qwen3_moe", dict(MOE, head_dim=16, decoder_sparse_step=2)),
    "stablelm": ("stablelm", dict(LLAMA)),
    "stablelm_parallel": ("stablelm", dict(LLAMA, use_qkv_bias=True, use_parallel_residual=True,
                                           partial_rotary_factor=0.5)),
    "stablelm_head_norms": ("stablelm", dict(LLAMA, qk_layernorm=True, hidden_act="quick_gelu")),
    "stablelm_parallel_head_norms": ("stablelm", dict(LLAMA, qk_layernorm=True, use_parallel_residual=True, tie_word_embeddings=True)),
    "phi3": ("phi3", dict(LLAMA)),
    "phi3_partial_window": ("phi3", dict(LLAMA, partial_rotary_factor=0.5, sliding_window=16)),
    "gemma2": ("gemma2", dict(LLAMA, head_dim=16, sliding_window=16, query_pre_attn_scalar=20)),
    "gemma3": ("gemma3_text", dict(LLAMA, num_hidden_layers=7, head_dim=16, sliding_window=16,
                                   query_pre_attn_scalar=20)),
    "bert": ("bert", dict(BERT, hidden_size=96, num_attention_heads=6)),
    "bert_untied": ("bert", dict(BERT, tie_word_embeddings=False, hidden_act="gelu_new", type_vocab_size=3)),
    "roberta": ("roberta", dict(BERT, pad_token_id=1, max_position_embeddings=50, type_vocab_size=1)),
    "roberta_untied": ("roberta", dict(BERT, tie_word_embeddings=False, pad_token_id=7, hidden_act="relu",
                                       num_attention_heads=2)),
    "xlm_roberta": ("xlm-roberta", dict(BERT, pad_token_id=1)),
    "t5": ("t5", dict(T5, d_kv=24, num_heads=3, num_decoder_layers=2)),
    "t5_gated_untied": ("t5", dict(T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
                                   relative_attention_num_buckets=8, relative_attention_max_distance=20)),
    "t5_gated_silu": ("t5", dict(T5, feed_forward_proj="gated-silu")),
    "mt5": ("mt5", dict(T5)),
    "llama_dynamic": ("llama", dict(LLAMA, max_position_embeddings=32, rope_parameters=dict(
        rope_type="dynamic", factor=3.0, rope_theta=10000.0))),
    "qwen3_dynamic_within": ("qwen3", dict(LLAMA, head_dim=16, rope_parameters=dict(
        rope_type="dynamic", factor=2.0, rope_theta=500.0))),
    "gpt2_tanh": ("gpt2", dict(GPT2, activation_function="tanh")),
    "llama_yarn": ("llama", dict(LLAMA, rope_parameters=dict(YARN))),
    "qwen2_yarn": ("qwen2", dict(LLAMA, rope_parameters=dict(YARN, beta_fast=8.0, beta_slow=2.0, truncate=False,
                                                             attention_factor=1.3))),
    "qwen3_yarn": ("qwen3", dict(LLAMA, head_dim=32, rope_parameters=dict(YARN, mscale=0.7, mscale_all_dim=1.1))),
    "phi3_longrope_long": ("phi3", dict(LLAMA, original_max_position_embeddings=32, rope_parameters=dict(
        LONG, short_factor=[1.0 + 0.1 * i for i in range(8)], long_factor=[1.5 + i for i in range(8)]))),
    "phi3_longrope_short": ("phi3", dict(LLAMA, original_max_position_embeddings=64, partial_rotary_factor=0.5,
                                         rope_parameters=dict(LONG, short_factor=[1.0, 1.4, 2.0, 3.5],
                                                              long_factor=[2.0, 4.0, 8.0, 16.0]))),
    "llama_longrope": ("llama", dict(LLAMA, rope_parameters=dict(
        LONG, factor=6.0, original_max_position_embeddings=48, attention_factor=0.8,
        short_factor=[1.0 + 0.2 * i for i in range(8)], long_factor=[2.0 + i for i in range(8)]))),
}

ENCODERS = {"bert", "roberta", "xlm-roberta"}
TWO_STACKS = {"t5", "mt5"}
# Heads that share nothing with the embedding, in a family whose configuration has no word for it.
OWN_HEAD = {"t5_gated_untied", "mt5"}


def main() -> None:
    root = Path(sys.argv[1])
    wanted = sys.argv[2:]
    for name, (model_type, settings) in CASES.items():
        if wanted and name not in wanted:
            continue
        torch.manual_seed(len(name))
        kind = AutoModelForCausalLM
        if model_type in ENCODERS:
            kind = AutoModelForMaskedLM
        elif model_type in TWO_STACKS:
            kind = AutoModelForSeq2SeqLM
        model = kind.from_config(AutoConfig.for_model(model_type, **settings), attn_implementation="eager")
        if name in OWN_HEAD:
            model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
        with torch.no_grad():
            for part, parameter in model.named_parameters():
                # Larger than the initialization, so that a part left out shows in the logits.
                centre = 1.0 if parameter.dim() == 1 and parameter.mean() > 0.5 else 0.0
                width = 0.3 if parameter.dim() == 1 else 1.5 / parameter.shape[-1] ** 0.5
                parameter.copy_(centre + width * torch.randn_like(parameter))
                if model_type in TWO_STACKS and part.endswith(".q.weight"):
                    # Scores are not scaled: with this they are of the size that scaling gives.
                    parameter *= settings["d_kv"] ** -0.5
        model.eval()
        folder = root / name
        model.save_pretrained(folder)
        # What the files say, not what was in memory.
        model = kind.from_pretrained(folder, attn_implementation="eager").eval()
        inputs = {"input_ids": torch.randint(8, 256, (3, 48))}
        stored = {}
        if model_type in TWO_STACKS:
            inputs["decoder_input_ids"] = torch.randint(8, 256, (3, 30))
            inputs["decoder_input_ids"][:, 0] = 0
            stored["decoder_tokens"] = inputs["decoder_input_ids"].int()
        if model_type in ENCODERS | TWO_STACKS:
            # One whole, one filled up at its end, one at its start.
            mask = torch.ones(3, 48, dtype=torch.long)
            mask[1, 31:] = 0
            mask[2, :5] = 0
            inputs["input_ids"][mask == 0] = settings["pad_token_id"]
            inputs["attention_mask"] = mask
            stored["attention_mask"] = mask.int()
        with torch.no_grad():
            logits = model(**inputs).logits
        stored |= {"tokens": inputs["input_ids"].int(), "logits": logits.float().contiguous()}
        save_file(stored, folder / "expected.safetensors")
        print(name, f"largest logit {logits.abs().max():.1f}")


main()
