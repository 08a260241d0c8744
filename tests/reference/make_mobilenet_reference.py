#!/usr/bin/env python3
"""Make mobilenet_reference.safetensors with torchvision: two pictures and their MobileNetV2 features.

Usage: make_mobilenet_reference.py WEIGHTS.safetensors OUT.safetensors [--probe]
WEIGHTS is assets/mobilenet_v2.safetensors, run here in f32 on the CPU. Needs: torch torchvision safetensors.
--probe also prints how far the features move under each mistake that the tolerance of the test has to catch.
"""
import argparse
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torchvision.models import mobilenet_v2

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def network(path: str) -> torch.nn.Module:
    net = mobilenet_v2(weights=None)
    missing, extra = net.load_state_dict({k: v.float() for k, v in load_file(path).items()}, strict=False)
    assert not extra and all(name.endswith("num_batches_tracked") for name in missing), (missing, extra)
    return net.eval()


def pictures() -> dict[str, torch.Tensor]:
    """[1, 3, h, w] in -1...1; sharp edges and fine grain, so that the way of resizing shows."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    disc = ((x - 30) ** 2 + (y - 34) ** 2 < 20**2).float()
    eyes = (((x - 23) % 14) ** 2 + (y - 28) ** 2 < 9).float() * (x > 20) * (x < 42)
    face = torch.stack([disc * 0.95, disc * 0.8 * (1 - eyes), 0.15 + 0.5 * (1 - disc)]) * 2 - 1
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(80.0), indexing="ij")
    stripes = ((x + 2 * y) % 16 < 8).float()
    grain = ((x * 7 + y * 13) % 11) / 10
    cloth = torch.stack([stripes * grain, 0.3 * (1 - stripes) + y / 192, 0.5 + 0.5 * torch.sin(x / 5)]) * 2 - 1
    return {"face": face.unsqueeze(0).clamp(-1, 1), "cloth": cloth.unsqueeze(0).clamp(-1, 1)}


def features(net, pixels: torch.Tensor, mean=MEAN, std=STD, **resize) -> torch.Tensor:
    resize = {"mode": "bicubic", "align_corners": False} | resize
    x = F.interpolate(pixels, size=(224, 224), **resize)
    return F.normalize(net.features(((x + 1) / 2 - mean) / std).mean((2, 3)), dim=-1)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("weights")
    ap.add_argument("out")
    ap.add_argument("--probe", action="store_true")
    a = ap.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    net = network(a.weights)
    tensors = {}
    for name, pixels in pictures().items():
        tensors |= {f"{name}.pixels": pixels.contiguous(), f"{name}.features": features(net, pixels)}
        if a.probe:
            right = tensors[f"{name}.features"]
            for label, wrong in {
                "corners aligned": {"align_corners": True},
                "bilinear": {"mode": "bilinear"},
                "antialiased": {"antialias": True},
                "red and blue exchanged": {"mean": MEAN.flip(1), "std": STD.flip(1)},
            }.items():
                error = (features(net, pixels, **wrong) - right).abs().max() / right.abs().max()
                print(f"{name}: {label} moves the features by {error:.1e} of the largest")
    if a.probe:
        print("cosine of the two:", (tensors["face.features"] @ tensors["cloth.features"].T).item())
    save_file(tensors, a.out)


if __name__ == "__main__":
    main()
