"""The preset dictionary that the manifest is deflated with: names that real networks use.

It is part of the format (docs/format.md, "Preset dictionary"): changing one byte makes files unreadable.
The most frequent names stand last, where DEFLATE reaches them with the fewest bits.
"""

from __future__ import annotations

_NAMES = """
inv_freq masked_bias gamma beta kernel weight_v weight_g in_proj_weight in_proj_bias out_proj.weight
scale zero_point lora_A.weight lora_B.weight relative_position_bias_table relative_position_index
vision_model. text_model. image_encoder. model.decoder. transformer.h.0. wte.weight wpe.weight
ln_1.weight attn.c_attn.weight c_proj.weight ln_2.weight mlp.c_fc.weight ln_f.weight
bert.embeddings.position_ids bert.embeddings.word_embeddings.weight position_embeddings.weight
token_type_embeddings.weight patch_embeddings.projection.weight
encoder.layer.0.attention.self.query.weight key.weight value.weight attention.output.dense.weight
layernorm_before.weight layernorm_after.weight output.dense.weight intermediate.dense.weight
LayerNorm.weight bert.pooler.dense.weight model.embed_tokens.weight
model.layers.0.self_attn.q_proj.weight k_proj.weight v_proj.weight o_proj.weight mlp.gate_proj.weight
up_proj.weight down_proj.weight input_layernorm.weight post_attention_layernorm.weight model.norm.weight
lm_head.weight cls_token pos_embed patch_embed.proj.weight blocks.0.norm1.weight attn.qkv.weight
proj.weight norm2.weight mlp.fc1.weight fc2.weight norm.weight head.weight stages.0. conv_dw.weight
conv_pw.weight conv_pwl.weight se.conv_reduce.weight conv_expand.weight
features.denseblock1.denselayer1.norm1.weight transition1.norm.weight squeeze.weight expand1x1.weight
expand3x3.weight shortcut.0.weight features.0.0.weight 1.conv.0.0.weight classifier.1.weight
linear.weight fc.weight downsample.0.weight 1.weight layer1.0.conv1.weight bn1.weight conv2.weight
bn2.weight conv3.weight bn3.weight bias running_mean running_var num_batches_tracked
"""

DICTIONARY: bytes = b"".join(name.encode("ascii") + b"\0" for name in _NAMES.split())
"""The names, each followed by a zero byte, as they stand in the manifest's column of name suffixes."""
