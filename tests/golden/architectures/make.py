#!/usr/bin/env python3
"""Makes the models of this folder and their logits: small random ones, run by transformers in f32, written as GGUF.

  python3 make.py FOLDER [NAME...]      needs torch, transformers 5 and gguf

For each case NAME it writes NAME.gguf (F16 matrices, F32 vectors and routers; the same values went into the run) and NAME.logits:
u32 count of tokens T, u32 size of the vocabulary V, T u32 ids, then T x V f32 logits, little endian.
"""
import math, struct, sys

import gguf
import numpy as np
import torch
import transformers as tf

VOCAB, TOKENS = 272, 40
BASE = dict(vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, rms_norm_eps=1e-5, max_position_embeddings=128, tie_word_embeddings=False,
            attn_implementation='eager', bos_token_id=0, eos_token_id=1, pad_token_id=2)
YARN = dict(rope_type='yarn', rope_theta=10000.0, factor=4.0, original_max_position_embeddings=32)
LLAMA3 = dict(rope_type='llama3', rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
LINEAR = dict(rope_type='linear', rope_theta=10000.0, factor=2.0)
# Of 16 frequency pairs each.
SHORT = [1.0 + 0.05 * i for i in range(16)]
LONG = [1.0 + 0.3 * i for i in range(16)]
LONGROPE = dict(rope_type='longrope', rope_theta=10000.0, short_factor=SHORT, long_factor=LONG,
                original_max_position_embeddings=24, factor=128 / 24)
GEMMA = dict(num_hidden_layers=7, head_dim=32, sliding_window=16, query_pre_attn_scalar=32, tie_word_embeddings=True,
             hidden_activation='gelu_pytorch_tanh')

# name, GGUF architecture, configuration, model, what differs from BASE
CASES = [
    ('llama', 'llama', tf.LlamaConfig, tf.LlamaForCausalLM, dict(head_dim=32)),
    ('llama-linear', 'llama', tf.LlamaConfig, tf.LlamaForCausalLM, dict(head_dim=32, rope_parameters=LINEAR)),
    ('llama-factors', 'llama', tf.LlamaConfig, tf.LlamaForCausalLM, dict(head_dim=32, rope_parameters=LLAMA3)),
    ('llama-yarn', 'llama', tf.LlamaConfig, tf.LlamaForCausalLM, dict(head_dim=64, rope_parameters=YARN)),
    ('mistral', 'llama', tf.MistralConfig, tf.MistralForCausalLM, dict(head_dim=48, sliding_window=None)),
    ('qwen2', 'qwen2', tf.Qwen2Config, tf.Qwen2ForCausalLM, dict(hidden_size=128, intermediate_size=64)),
    ('qwen3', 'qwen3', tf.Qwen3Config, tf.Qwen3ForCausalLM, dict(head_dim=32)),
    ('gemma3', 'gemma3', tf.Gemma3TextConfig, tf.Gemma3ForCausalLM, GEMMA),
    ('phi3', 'phi3', tf.Phi3Config, tf.Phi3ForCausalLM, dict(hidden_size=128, intermediate_size=64)),
    ('qwen2moe', 'qwen2moe', tf.Qwen2MoeConfig, tf.Qwen2MoeForCausalLM,
     dict(hidden_size=128, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=64, shared_expert_intermediate_size=64,
          norm_topk_prob=False, qkv_bias=True)),
    ('qwen3moe', 'qwen3moe', tf.Qwen3MoeConfig, tf.Qwen3MoeForCausalLM,
     dict(head_dim=32, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=64, norm_topk_prob=True)),
    ('mixtral', 'llama', tf.MixtralConfig, tf.MixtralForCausalLM,
     dict(head_dim=32, intermediate_size=64, num_local_experts=4, num_experts_per_tok=2, sliding_window=None)),
    ('mixtral-split', 'llama', tf.MixtralConfig, tf.MixtralForCausalLM,
     dict(head_dim=32, intermediate_size=32, num_local_experts=4, num_experts_per_tok=2, sliding_window=None)),
    ('phi3-long', 'phi3', tf.Phi3Config, tf.Phi3ForCausalLM,
     dict(hidden_size=128, intermediate_size=64, rope_parameters=LONGROPE, original_max_position_embeddings=24)),
]
NAMES = {
    'model.embed_tokens': 'token_embd', 'model.norm': 'output_norm', 'lm_head': 'output',
    'input_layernorm': 'attn_norm', 'post_attention_layernorm': 'ffn_norm', 'self_attn.q_proj': 'attn_q',
    'self_attn.k_proj': 'attn_k', 'self_attn.v_proj': 'attn_v', 'self_attn.o_proj': 'attn_output',
    'self_attn.q_norm': 'attn_q_norm', 'self_attn.k_norm': 'attn_k_norm', 'self_attn.qkv_proj': 'attn_qkv',
    'mlp.gate_proj': 'ffn_gate', 'mlp.up_proj': 'ffn_up', 'mlp.down_proj': 'ffn_down', 'mlp.gate_up_proj': 'ffn_up',
    'mlp.gate': 'ffn_gate_inp', 'mlp.shared_expert_gate': 'ffn_gate_inp_shexp',
    'mlp.shared_expert.gate_proj': 'ffn_gate_shexp', 'mlp.shared_expert.up_proj': 'ffn_up_shexp',
    'mlp.shared_expert.down_proj': 'ffn_down_shexp',
}
GEMMA_NAMES = {'post_attention_layernorm': 'post_attention_norm', 'pre_feedforward_layernorm': 'ffn_norm',
               'post_feedforward_layernorm': 'post_ffw_norm'}


def gguf_name(name, arch):
    stem, kind = name.rsplit('.', 1)
    parts = stem.split('.')
    if parts[:2] == ['model', 'layers']:
        names = {**NAMES, **GEMMA_NAMES} if arch == 'gemma3' else NAMES
        return f"blk.{parts[2]}.{names['.'.join(parts[3:])]}.{kind}"
    return f'{NAMES[stem]}.{kind}'


def experts(key, value, split):
    """The tensors of the experts that a parameter [expert, rows, columns] holds: `blk.0.ffn_up_exps.weight`, or one each."""
    layer, part = key.split('.')[2], key.split('.')[-1]
    half = value.shape[1] // 2
    parts = dict(ffn_gate=value[:, :half], ffn_up=value[:, half:]) if part == 'gate_up_proj' else dict(ffn_down=value)
    for name, stack in parts.items():
        if split:
            for i, one in enumerate(stack):
                yield f'blk.{layer}.{name}.{i}.weight', one
        else:
            yield f'blk.{layer}.{name}_exps.weight', stack


def neighbours(weight, heads):
    """Rows of rotated halves as the neighbours that llama's GGUF files have."""
    rows, cols = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)


def alphabet():
    """GPT-2's letters for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    extra = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(extra)) for b in range(256)]


def make(name, arch, config_class, model_class, changes, folder):
    config = config_class(**{**BASE, **changes})
    torch.manual_seed(sum(map(ord, name)))
    model = model_class(config).eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if p.dim() >= 2:
                p.copy_((torch.randn_like(p) / math.sqrt(p.shape[-1])).half().float())
            elif key.endswith('bias'):
                p.copy_(torch.randn_like(p) * 0.5)
            else:
                p.copy_((0.0 if arch == 'gemma3' else 1.0) + 0.2 * torch.randn_like(p))
        if arch == 'gemma3':  # its embeddings are scaled by the root of their size
            model.model.embed_tokens.weight.mul_(0.5)
    ids = torch.randint(0, 256, (1, TOKENS))
    with torch.no_grad():
        logits = model(ids).logits[0].float().numpy()

    w = gguf.GGUFWriter(f'{folder}/{name}.gguf', arch)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, 'head_dim', None) or config.hidden_size // heads
    w.add_name(f'random {name}')
    w.add_file_type(1)
    w.add_block_count(config.num_hidden_layers)
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(heads)
    w.add_head_count_kv(kv_heads)
    w.add_key_length(head_dim)
    w.add_value_length(head_dim)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    w.add_rope_dimension_count(head_dim)
    if used := getattr(config, 'num_experts_per_tok', None):
        w.add_expert_count(getattr(config, 'num_experts', None) or config.num_local_experts)
        w.add_expert_used_count(used)
    if hidden := getattr(config, 'moe_intermediate_size', None):
        w.add_expert_feed_forward_length(hidden)
    if hidden := getattr(config, 'shared_expert_intermediate_size', None):
        w.add_expert_shared_feed_forward_length(hidden)
    rope = config.rope_parameters
    if arch == 'gemma3':
        w.add_sliding_window(config.sliding_window)
        rope = rope['full_attention']
    w.add_rope_freq_base(rope['rope_theta'])
    kind = rope['rope_type']
    if kind == 'linear':
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(rope['factor'])
    if kind == 'yarn':
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(rope['factor'])
        w.add_rope_scaling_orig_ctx_len(rope['original_max_position_embeddings'])
    if kind == 'llama3':
        freqs = model.model.rotary_emb.inv_freq.numpy()
        plain = rope['rope_theta'] ** (-np.arange(0, head_dim, 2) / head_dim)
        w.add_tensor('rope_freqs.weight', (plain / freqs).astype(np.float32))
    if kind == 'longrope':
        w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        w.add_rope_scaling_orig_ctx_len(rope['original_max_position_embeddings'])
        w.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(rope['factor']) / math.log(24)))
        w.add_tensor('rope_factors_short.weight', np.array(SHORT, np.float32))
        w.add_tensor('rope_factors_long.weight', np.array(LONG, np.float32))
    letters = alphabet()
    tokens = letters + ['ab'] + [f'<|{i}|>' for i in range(VOCAB - 257)]
    w.add_tokenizer_model('gpt2')
    w.add_tokenizer_pre('gpt-2')
    w.add_token_list(tokens)
    w.add_token_types([1] * 257 + [3] * (VOCAB - 257))
    w.add_token_merges(['a b'])
    w.add_bos_token_id(257)
    w.add_eos_token_id(258)

    for key, p in model.named_parameters():
        value = p.detach().numpy()
        if key == 'lm_head.weight' and config.tie_word_embeddings:
            continue
        if arch == 'llama' and 'q_proj' in key:
            value = neighbours(value, heads)
        if arch == 'llama' and 'k_proj' in key:
            value = neighbours(value, kv_heads)
        if arch == 'gemma3' and value.ndim == 1:
            value = value + 1
        if value.ndim == 3:
            for tensor, stack in experts(key, value, name.endswith('-split')):
                w.add_tensor(tensor, stack.astype(np.float16))
            continue
        if key.endswith('shared_expert_gate.weight'):
            value = value[0]
        router = 'gate.weight' in key
        w.add_tensor(gguf_name(key, arch), value.astype(np.float16 if value.ndim == 2 and not router else np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    with open(f'{folder}/{name}.logits', 'wb') as out:
        out.write(struct.pack('<II', TOKENS, VOCAB))
        out.write(ids[0].numpy().astype('<u4').tobytes())
        out.write(logits.astype('<f4').tobytes())
    print(f'{name}: rope {kind}, largest logit {abs(logits).max():.2f}')


for case in CASES:
    if case[0] in sys.argv[2:] or len(sys.argv) == 2:
        make(*case, sys.argv[1])
