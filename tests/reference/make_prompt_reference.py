#!/usr/bin/env python3
"""Make prompt_reference.safetensors with transformers: contexts of weighted, long and clip-skipped prompts.

Usage: make_prompt_reference.py DIR
DIR holds `sd`, as make_reference.py writes it; the file is put beside it. Needs: torch transformers safetensors.
Chunks and weights are given by hand here; `prompts` in the metadata are the texts that must lead to them.
"""
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

torch.set_grad_enabled(False)
ROOM = 75

# Name, text, clip skip, chunks of (text, weight).
CASES = [
    ("plain", "a photo of a cat", 1, [[("a photo of a cat", 1.0)]]),
    ("weighted", "a (photo:1.4) of [a] cat, ((dog))", 1,
     [[("a ", 1.0), ("photo", 1.4), (" of ", 1.0), ("a", 1 / 1.1), (" cat, ", 1.0), ("dog", 1.1 * 1.1)]]),
    ("negative_weight", "a (cat:-0.5) on a mat", 1, [[("a ", 1.0), ("cat", -0.5), (" on a mat", 1.0)]]),
    ("skip_2", "a photo of a cat", 2, [[("a photo of a cat", 1.0)]]),
    ("skip_3_weighted", "a (photo of:1.3) a cat", 3, [[("a ", 1.0), ("photo of", 1.3), (" a cat", 1.0)]]),
    ("two_chunks", "a (cat:1.5) BREAK [a] dog", 1, [[("a ", 1.0), ("cat", 1.5)], [("a", 1 / 1.1), (" dog", 1.0)]]),
]


def main():
    folder = Path(sys.argv[1])
    tok = CLIPTokenizer.from_pretrained(str(folder / "sd/tokenizer"))
    text = CLIPTextModel.from_pretrained(str(folder / "sd/text_encoder"), torch_dtype=torch.float32).eval()
    inner = getattr(text, "text_model", text)
    start, end = tok.bos_token_id, tok.eos_token_id

    def chunk(spans, skip):
        ids, weights = [], []
        for piece, weight in spans:
            new = tok(piece, add_special_tokens=False).input_ids
            ids += new
            weights += [weight] * len(new)
        fill = ROOM - len(ids)
        assert fill >= 0
        ids = [start] + ids + [end] * (fill + 1)
        weights = [1.0] + weights + [1.0] * (fill + 1)
        out = text(torch.tensor([ids]), output_hidden_states=True)
        z = out.last_hidden_state if skip == 1 else inner.final_layer_norm(out.hidden_states[-skip])
        weighed = z * torch.tensor(weights).view(1, -1, 1)
        return weighed * (z.mean() / weighed.mean())

    tensors = {name: torch.cat([chunk(spans, skip) for spans in chunks], 1) for name, _, skip, chunks in CASES}
    told = [{"name": name, "prompt": prompt, "clip_skip": skip} for name, prompt, skip, _ in CASES]
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "prompt_reference.safetensors",
              metadata={"prompts": json.dumps(told)})
    for name, t in tensors.items():
        print(f"{name:20} {list(t.shape)} norm {t.norm():.4f}")


main()
