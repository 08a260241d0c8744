#!/usr/bin/env python3
"""Seconds per training and sampling step of the starter model: PyTorch + diffusers + PEFT beside Triptych.

Usage: steps.py [--threads 2]      from the repository's root; needs torch diffusers transformers peft safetensors
The same work on both sides: f32 on the CPU, rank-8 LoRA on attention, feed-forward and projections, a trained token
whose gradient goes through the text encoder, AdamW, clipping at 1; prior = the untouched model's prediction kept under
another prompt. Median of 15 after 3.
"""
import argparse, json, statistics, subprocess, time
import torch, torch.nn.functional as F
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from transformers import CLIPTextModel, CLIPTokenizer

STARTER = "assets/starter"
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]


def median(call, warm_up=3, runs=15):
    seconds = []
    for _ in range(warm_up + runs):
        start = time.perf_counter(); call(); seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[warm_up:])


def parts():
    unet = UNet2DConditionModel.from_pretrained(STARTER, subfolder="unet").float().eval().requires_grad_(False)
    text = CLIPTextModel.from_pretrained(STARTER, subfolder="text_encoder").float().eval().requires_grad_(False)
    return unet, text


def encode(text, tok, prompt, vector=None):
    ids = tok([prompt], padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    table = text.get_input_embeddings()
    if vector is None:
        return text(ids).last_hidden_state
    embedded = table(ids).clone(); embedded[0, 5] = vector
    hook = table.register_forward_hook(lambda *_: embedded)
    out = text(ids).last_hidden_state; hook.remove()
    return out


def train(b, p):
    unet, text = parts(); tok = CLIPTokenizer.from_pretrained(STARTER, subfolder="tokenizer")
    unet.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=TARGETS))
    token = torch.nn.Parameter(text.get_input_embeddings().weight[5].clone())
    lora = [q for n, q in unet.named_parameters() if "lora_" in n]
    opt = torch.optim.AdamW([{"params": lora}, {"params": [token], "weight_decay": 0}], lr=1e-3, weight_decay=1e-2)
    x, t = torch.randn(b, 4, 16, 16), torch.full((b,), 500)
    prior = encode(text, tok, "a 3d emoji of robot").expand(p, -1, -1) if p else None

    def step():
        context = encode(text, tok, "a 3d emoji of x robot", token).expand(b, -1, -1)
        if p:
            with torch.no_grad():
                unet.disable_adapters(); want = unet(x[:p], t[:p], prior).sample; unet.enable_adapters()
            both = unet(torch.cat([x, x[:p]]), torch.cat([t, t[:p]]), torch.cat([context, prior])).sample
            loss = F.mse_loss(both[:b], x) + 2 * F.mse_loss(both[b:], want)
        else:
            loss = F.mse_loss(unet(x, t, context).sample, x)
        opt.zero_grad(); loss.backward()
        torch.nn.utils.clip_grad_norm_(lora + [token], 1.0); opt.step(); loss.item()

    return median(step)


def sample(n):
    unet, text = parts(); tok = CLIPTokenizer.from_pretrained(STARTER, subfolder="tokenizer")
    with torch.no_grad():
        x = torch.randn(2 * n, 4, 16, 16); context = encode(text, tok, "a 3d emoji of robot").expand(2 * n, -1, -1)
        return median(lambda: unet(x, 500, context).sample)


if __name__ == "__main__":
    ap = argparse.ArgumentParser(); ap.add_argument("--threads", type=int, default=2); a = ap.parse_args()
    torch.set_num_threads(a.threads)
    theirs = {"train_b4": train(4, 0), "train_b4_prior4": train(4, 4), "train_b8": train(8, 0), "sample_b1": sample(1), "sample_b6": sample(6)}
    out = subprocess.run(["cargo", "bench", "--profile", "dev", "--bench", "steps"], capture_output=True, text=True, check=True)
    ours = json.loads(out.stdout.strip().splitlines()[-1])
    print(f"torch {torch.__version__}, {a.threads} threads\n{'':<28}{'Triptych':>10}{'PyTorch':>10}{'ratio':>8}")
    for name, seconds in ours.items():
        other = theirs.get(name)
        print(f"{name:<28}{seconds * 1e3:>7.0f} ms" + (f"{other * 1e3:>7.0f} ms{seconds / other:>8.2f}" if other else ""))
