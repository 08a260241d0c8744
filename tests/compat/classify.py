#!/usr/bin/env python3
"""What torchvision's MobileNetV2 sees in ten pictures of the repository: the list that tests/vision holds ours against.

Usage: classify.py [--check "triptych"]     from the root of the repository
Writes tests/reference/classify.json; with --check it runs `triptych classify --json` instead and compares, exit 1 on a
difference. Needs: torch pillow safetensors. torchvision is used where it is installed; without it, the same network is
built of torch's modules and the same preprocessing of Pillow's.
"""
import argparse
import json
import pathlib
import shlex
import subprocess
import sys
import torch
from PIL import Image
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIST = ROOT / "tests/reference/classify.json"
PICTURES = [
    "assets/concepts/dicebear_adventurer/00.png",
    "assets/concepts/dicebear_big-smile/03.png",
    "assets/concepts/dicebear_pixel-art/05.png",
    "assets/concepts/kenney_male_person/idle.png",
    "assets/concepts/kenney_robot/jump.png",
    "tests/reference/emoji/fluent3d_banana.png",
    "tests/reference/emoji/noto_cat_face.png",
    "tests/reference/emoji/noto_hot_beverage.png",
    "tests/reference/emoji/noto_soccer_ball.png",
    "tests/reference/emoji/twemoji_umbrella.png",
]
MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def plain_network():
    """MobileNetV2 of torch's modules, with torchvision's names of the tensors."""
    from torch import nn

    def conv(i, o, kernel, stride=1, groups=1):
        return [nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(o)]

    class Block(nn.Module):
        def __init__(self, i, o, stride, expansion):
            super().__init__()
            wide = i * expansion
            layers = [nn.Sequential(*conv(i, wide, 1), nn.ReLU6())] if expansion > 1 else []
            layers.append(nn.Sequential(*conv(wide, wide, 3, stride, wide), nn.ReLU6()))
            self.conv = nn.Sequential(*layers, *conv(wide, o, 1))
            self.shortcut = stride == 1 and i == o

        def forward(self, x):
            return x + self.conv(x) if self.shortcut else self.conv(x)

    features, channels = [nn.Sequential(*conv(3, 32, 3, 2), nn.ReLU6())], 32
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, out, repeats, stride in stages:
        for repeat in range(repeats):
            features.append(Block(channels, out, stride if repeat == 0 else 1, expansion))
            channels = out
    features.append(nn.Sequential(*conv(channels, 1280, 1), nn.ReLU6()))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(*features)
            self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

        def forward(self, x):
            return self.classifier(self.features(x).mean((2, 3)))

    return Network()


def plain_preprocess(picture):
    """`ImageClassification(crop_size=224, resize_size=256)`: the shorter side to 256, the middle of it, normalised."""
    w, h = picture.size
    w, h = (256, int(256 * h / w)) if w <= h else (int(256 * w / h), 256)
    left, top = round((w - 224) / 2), round((h - 224) / 2)
    picture = picture.resize((w, h), Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224))
    x = torch.tensor(list(picture.tobytes()), dtype=torch.uint8).view(224, 224, 3).permute(2, 0, 1) / 255
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)


def tools():
    try:
        from torchvision.models import MobileNet_V2_Weights, mobilenet_v2
    except ImportError:
        return plain_network(), plain_preprocess, "torch's modules"
    return mobilenet_v2(weights=None), MobileNet_V2_Weights.IMAGENET1K_V1.transforms(), "torchvision"


def opaque(path):
    """On white, as every picture is read here."""
    picture = Image.open(path).convert("RGBA")
    white = Image.new("RGB", picture.size, "white")
    white.paste(picture, mask=picture.getchannel("A"))
    return white


def top_five():
    names = (ROOT / "assets/imagenet_classes.txt").read_text().splitlines()
    net, preprocess, by = tools()
    weights = {k: v.float() for k, v in load_file(ROOT / "assets/mobilenet_v2.safetensors").items()}
    missing, extra = net.load_state_dict(weights, strict=False)
    assert not extra and all(name.endswith("num_batches_tracked") for name in missing), (missing, extra)
    net.eval()
    seen = []
    for path in PICTURES:
        shares = net(preprocess(opaque(ROOT / path)).unsqueeze(0)).softmax(1)[0]
        best = shares.topk(5)
        top = [{"index": int(i), "class": names[i], "probability": round(float(p), 6)} for p, i in zip(*best)]
        seen.append({"path": path, "top": top})
    return seen, by


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--check", help="command of our program, such as target/debug/triptych")
    a = ap.parse_args()
    torch.set_grad_enabled(False)
    seen, by = top_five()
    if a.check is None:
        LIST.write_text(json.dumps(seen, indent=1) + "\n")
        print(f"{len(seen)} pictures seen by {by}: {LIST}")
        return
    command = [*shlex.split(a.check), "classify", *PICTURES, "--model", "mobilenet", "--device", "cpu", "--json"]
    ours = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    wrong = 0
    for theirs, found in zip(seen, ours["pictures"], strict=True):
        same = [guess["index"] for guess in theirs["top"]] == [guess["index"] for guess in found["top"]]
        apart = max(abs(t["probability"] - f["probability"]) for t, f in zip(theirs["top"], found["top"]))
        wrong += not same
        print(f"{theirs['path']}: {'same' if same else 'OTHER'} top five as {by}, probabilities within {apart:.4f}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
