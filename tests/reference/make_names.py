#!/usr/bin/env python3
"""Write sd15_names.txt: every tensor of Stable Diffusion 1.5 as diffusers and as a single file name it, with its shape;
and sdxl_names.txt: the same of SDXL's denoiser and second text encoder, whose queries, keys and values share a tensor.

Usage: make_names.py OUT_DIR
Needs torch, diffusers and transformers; nothing is downloaded, and no weight is made.
"""
import ast
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from make_sdxl_reference import to_open_clip, unet_to_ldm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

# That script makes its files as soon as it is imported, so the one function is taken out of it.
functions = ast.parse(Path(__file__).with_name("make_reference.py").read_text()).body
exec(compile(ast.Module([f for f in functions if getattr(f, "name", "") == "to_ldm"], []), "make_reference.py", "exec"))

with torch.device("meta"):
    unet = UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)
    vae = AutoencoderKL(
        latent_channels=4, layers_per_block=2, block_out_channels=(128, 256, 512, 512), sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12))


class Network:
    """As much of a module as to_ldm asks for."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state


def names(kind, module):
    """ours → (name in a single file, shape there), of one network; one tensor at a time, so that each is followed."""
    pairs = {}
    for name, tensor in module.state_dict().items():
        if "position_ids" not in name:
            [(ldm, there)] = to_ldm(*(Network({name: tensor} if kind == k else {}) for k in KINDS)).items()
            ours = name if kind != "text" or name.startswith("text_model.") else "text_model." + name
            pairs[ours] = (ldm, there.shape)
    return pairs


KINDS = ("unet", "vae", "text")
lines = []
for kind, module in [("unet", unet), ("vae", vae), ("text", text)]:
    for ours, (ldm, shape) in sorted(names(kind, module).items()):
        lines.append(f"{kind} {ours} {ldm} {','.join(map(str, shape))}")
Path(sys.argv[1], "sd15_names.txt").write_text("\n".join(lines) + "\n")

with torch.device("meta"):
    unet = UNet2DConditionModel(
        sample_size=128, cross_attention_dim=2048, attention_head_dim=(5, 10, 20), block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",), use_linear_projection=True,
        transformer_layers_per_block=(1, 2, 10), addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816)
    text2 = CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=49408, hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20,
        hidden_act="gelu", projection_dim=1280))

lines = [f"unet {ours} model.diffusion_model.{unet_to_ldm(ours)} {','.join(map(str, x.shape))}" for ours, x in unet.state_dict().items()]
state = {k if k.startswith("text_") else "text_model." + k: x for k, x in text2.state_dict().items() if "position_ids" not in k}
theirs = to_open_clip(state)
for ours, x in state.items():
    # One tensor is changed, so that the one that holds it differs.
    marked = to_open_clip({**state, ours: torch.empty([x.shape[0] + 1, *x.shape[1:]], device="meta")})
    [ldm] = [name for name, y in marked.items() if y.shape != theirs[name].shape]
    lines.append(f"text2 {ours} conditioner.embedders.1.model.{ldm} {','.join(map(str, theirs[ldm].shape))}")
Path(sys.argv[1], "sdxl_names.txt").write_text("\n".join(sorted(lines)) + "\n")
