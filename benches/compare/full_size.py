#!/usr/bin/env python3
"""Seconds and memory of Stable Diffusion 1.5's shapes on the CPU: PyTorch + diffusers + PEFT beside Triptych.

Usage: full_size.py MODEL_F32 MODEL_F16 [--threads 2]    from the repository's root; models are made by make_sd15.py
The denoiser once at 512×512; a LoRA step (rank 16 on attention, feed-forward and projections, AdamW, clipping at 1) on
one picture with activation checkpointing on both sides; decoding one picture. --what leaves some out: of a model of one
--block, step and train are those of the block. Each in a process of its own; memory is
the largest anonymous memory seen, PyTorch in f32 (its f16 convolutions on a CPU are slower than that).
"""
import argparse, json, subprocess, sys, threading, time

WHAT = ["load", "step", "train", "decode"]
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]


def anonymous():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) / 1e3 for line in f if line.startswith("RssAnon"))


def theirs(folder, what, threads):
    import torch, torch.nn.functional as F
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel
    torch.set_num_threads(threads)
    peak = [0.0]
    def watch():
        while True: peak[0] = max(peak[0], anonymous()); time.sleep(0.01)
    idle = anonymous()
    threading.Thread(target=watch, daemon=True).start()
    start = time.perf_counter()
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").eval().requires_grad_(False)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").eval().requires_grad_(False)
    text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").eval().requires_grad_(False)
    # The weights are mapped from the file until they are used: touch them all.
    for part in (unet, vae, text):
        for p in part.parameters(): p.data = p.data.clone()
    load, held = time.perf_counter() - start, anonymous() - idle
    x, context = torch.randn(1, 4, 64, 64), torch.randn(1, 77, 768)
    seconds = []
    def timed(call):
        start = time.perf_counter(); call(); seconds.append(time.perf_counter() - start)
    if what == "step":
        with torch.no_grad():
            for _ in range(2): timed(lambda: unet(x, 500, context).sample)
    if what == "decode":
        with torch.no_grad(): timed(lambda: vae.decode(x).sample)
    if what == "train":
        from peft import LoraConfig
        unet.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=TARGETS)); unet.enable_gradient_checkpointing(); unet.train()
        lora = [q for n, q in unet.named_parameters() if "lora_" in n]
        opt = torch.optim.AdamW(lora, lr=1e-4)
        def step():
            loss = F.mse_loss(unet(x, 500, context).sample, x); opt.zero_grad(); loss.backward()
            torch.nn.utils.clip_grad_norm_(lora, 1.0); opt.step(); loss.item()
        for _ in range(2): timed(step)
    return {"what": what, "load_s": load, "held_mb": held, "peak_mb": peak[0] - idle, "seconds": seconds}


def ours(folder, precision, what):
    command = ["cargo", "bench", "--profile", "dev", "--bench", "full_size", "--", folder, precision, what]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    ap = argparse.ArgumentParser()
    ap.add_argument("f32"); ap.add_argument("f16"); ap.add_argument("--threads", type=int, default=2); ap.add_argument("--theirs"); ap.add_argument("--what", nargs="+", default=WHAT)
    a = ap.parse_args()
    if a.theirs:
        print(json.dumps(theirs(a.f32, a.theirs, a.threads))); sys.exit()
    print(f"{'':<10}{'Triptych f32':>24}{'Triptych f16':>24}{'PyTorch f32':>24}")
    for what in a.what:
        command = [sys.executable, __file__, a.f32, a.f16, "--threads", str(a.threads), "--theirs", what]
        other = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1])
        rows = [ours(a.f32, "f32", what), ours(a.f16, "f16", what), other]
        cell = lambda r: f"{(r['seconds'] or [r['load_s']])[-1]:>10.2f} s{r['peak_mb']:>9.0f} MB"
        print(f"{what:<10}" + "".join(f"{cell(r):>24}" for r in rows), flush=True)
