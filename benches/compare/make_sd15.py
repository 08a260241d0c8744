#!/usr/bin/env python3
"""A model of Stable Diffusion 1.5's real shapes with random weights, in diffusers layout.

Usage: make_sd15.py OUT [--dtype f16|f32] [--block]     needs torch diffusers transformers
Its pictures are noise; time and memory are those of the real one (859,520,964 numbers in the denoiser). With --block the
denoiser has its first level alone, 320 channels wide, with the level's own way down, middle and way up, and what stands
around it is small.
"""
import argparse, pathlib, shutil
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

ap = argparse.ArgumentParser()
ap.add_argument("out", type=pathlib.Path)
ap.add_argument("--dtype", choices=["f16", "f32"], default="f16")
ap.add_argument("--block", action="store_true")
a = ap.parse_args()
torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=64, block_out_channels=(320, 640, 1280, 1280)[: 1 if a.block else 4], cross_attention_dim=768,
    attention_head_dim=8, **{way + "_block_types": ("CrossAttn" + way.title() + "Block2D",) for way in ("down", "up") if a.block}
)
vae = AutoencoderKL(
    block_out_channels=(32,) * 4 if a.block else (128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, sample_size=512,
)
text = CLIPTextModel(CLIPTextConfig(
    vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=1 if a.block else 12, num_attention_heads=12,
    hidden_act="quick_gelu", projection_dim=768,
))
assert a.block or sum(p.numel() for p in unet.parameters()) == 859_520_964
dtype = {"f16": torch.float16, "f32": torch.float32}[a.dtype]
for part, name in [(unet, "unet"), (vae, "vae"), (text, "text_encoder")]:
    part.to(dtype).save_pretrained(a.out / name)
DDIMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False,
    clip_sample=False,
).save_pretrained(a.out / "scheduler")
print(a.out)
