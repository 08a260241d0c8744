#!/usr/bin/env python3
"""What a step is made of, one piece at a time: PyTorch beside Triptych.

Usage: kernels.py [--threads 2]      from the repository's root; needs torch diffusers
The names, shapes and order are those of benches/kernels.rs; a gradient goes to the input alone. Medians of 15 after 3.
"""
import argparse, json, statistics, subprocess, time
import torch, torch.nn.functional as F

CONVOLUTIONS = [(8, 64, 64, 16), (8, 96, 96, 8), (8, 128, 128, 4), (1, 320, 320, 64), (1, 640, 640, 32), (1, 1280, 1280, 16), (1, 1280, 1280, 8), (1, 128, 128, 256)]
PRODUCTS = [(2048, 64, 512), (512, 96, 768), (4096, 320, 320), (1024, 1024, 1024)]
ATTENTIONS = [(8, 4, 256, 16), (1, 8, 4096, 40)]


def median(call, warm_up=3, runs=15):
    for _ in range(warm_up): call()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter(); call(); seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def forward(f, *inputs):
    with torch.no_grad(): return median(lambda: f(*inputs))


def gradient(f, x):
    x = x.detach().requires_grad_()
    return median(lambda: torch.autograd.grad(f(x).sum(), x))


def theirs():
    for m, k, n in PRODUCTS:
        yield f"product {m}x{k}x{n}", forward(lambda a, b: a @ b.T, torch.randn(m, k), torch.randn(n, k))
    for b, i, o, s in CONVOLUTIONS:
        x, w = torch.randn(b, i, s, s), torch.randn(o, i, 3, 3)
        yield f"convolution {b}x{i}-{o} at {s}", forward(lambda x: F.conv2d(x, w, padding=1), x)
        yield f"convolution and gradient {b}x{i}-{o} at {s}", gradient(lambda x: F.conv2d(x, w, padding=1), x)
    for b, h, n, d in ATTENTIONS:
        x = torch.randn(b, h, n, d)
        yield f"attention {b}x{h}x{n}x{d}", forward(lambda x: F.scaled_dot_product_attention(x, x, x), x)
        yield f"attention and gradient {b}x{h}x{n}x{d}", gradient(lambda x: F.scaled_dot_product_attention(x, x, x), x)
    x, norm = torch.randn(8, 64, 16, 16), torch.nn.GroupNorm(32, 64).requires_grad_(False)
    yield "group norm and SiLU", forward(lambda x: F.silu(norm(x)), x)
    yield "group norm and SiLU and gradient", gradient(lambda x: F.silu(norm(x)), x)
    def gate(x):
        value, gate = x.chunk(2, dim=2)
        return value * F.gelu(gate)
    yield "gate and gradient", gradient(gate, torch.randn(8, 256, 512))
    p = torch.nn.Parameter(torch.randn(170_112)); p.grad = torch.randn_like(p); step = torch.optim.AdamW([p], lr=1e-3)
    yield "AdamW", median(step.step)
    from diffusers import AutoencoderKL
    vae = AutoencoderKL.from_pretrained("assets/starter", subfolder="vae").float().eval()
    yield "decoding", forward(lambda z: vae.decode(z).sample, torch.randn(1, 4, 16, 16))
    factors = [(torch.randn([320, 640, 1280][i % 3], 16), torch.randn(16, [320, 640, 1280][i // 3 % 3])) for i in range(192)]
    yield "192 spectra of rank 16", median(lambda: [torch.linalg.svdvals(torch.linalg.qr(u).R @ torch.linalg.qr(d.T).R.T) for u, d in factors])


if __name__ == "__main__":
    ap = argparse.ArgumentParser(); ap.add_argument("--threads", type=int, default=2); a = ap.parse_args()
    torch.set_num_threads(a.threads)
    out = subprocess.run(["cargo", "bench", "--profile", "dev", "--bench", "kernels"], capture_output=True, text=True, check=True)
    ours = json.loads(out.stdout.strip().splitlines()[-1])
    print(f"torch {torch.__version__}, {a.threads} threads\n\n| | Triptych | PyTorch | ratio |\n|---|---|---|---|")
    for name, seconds in theirs():
        mine = ours[name]
        print(f"| {name} | {mine * 1e3:.2f} ms | {seconds * 1e3:.2f} ms | {mine / seconds:.2f} |", flush=True)
