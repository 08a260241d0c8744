#!/usr/bin/env python3
"""Exact merge of three adapters of Stable Diffusion 1.5's size: PEFT's `svd` combination beside Triptych's merges.

Usage: merge.py [--threads 2]      from the repository's root; needs torch peft
Rank 16 on all attention layers of the denoiser, random factors, strengths 1, merged to rank 16: the layers of
benches/methods.rs. PEFT multiplies each adapter out, adds, and takes the whole SVD of every sum.
"""
import argparse, subprocess, time
import torch
from peft import LoraConfig, get_peft_model

BLOCKS = [(320, 5), (640, 5), (1280, 6)]
NAMES = ["one", "two", "three"]


def theirs():
    layers = torch.nn.ModuleDict()
    for width, count in BLOCKS:
        for block in range(count):
            for attention, context in [(1, width), (2, 768)]:
                for part, inner in [("q", width), ("k", context), ("v", context), ("out", width)]:
                    layers[f"{width}_{block}_attn{attention}_to_{part}"] = torch.nn.Linear(inner, width, bias=False)
    class Model(torch.nn.Module):
        def __init__(self): super().__init__(); self.layers = layers
    config = LoraConfig(r=16, lora_alpha=16, target_modules=list(layers), init_lora_weights=False)
    model = get_peft_model(Model(), config, NAMES[0])
    for name in NAMES[1:]: model.add_adapter(name, config)
    start = time.perf_counter()
    model.add_weighted_adapter(NAMES, [1.0] * 3, "merged", combination_type="svd", svd_rank=16)
    return len(layers), time.perf_counter() - start


def ours():
    command = ["cargo", "bench", "--profile", "dev", "--bench", "methods", "--", "60", "sized"]
    rows = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if row.startswith("|")]
    return {row[0]: float(row[1]) for row in cells if row[0] in ("sum", "svd")}


parser = argparse.ArgumentParser(); parser.add_argument("--threads", type=int, default=2)
torch.set_num_threads(parser.parse_args().threads); torch.manual_seed(0)
seconds = ours()
layers, peft = theirs()
print(f"{layers} layers; PEFT svd {peft:.1f} s")
for name, own in seconds.items(): print(f"Triptych {name} {own:.3f} s: {peft / own:.0f} times as fast")
