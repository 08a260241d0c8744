#!/usr/bin/env python3
"""What Triptych teaches a classifier of transformers answers the same in PEFT, and what PEFT saved the same in Triptych.

Usage: peft_vision.py "triptych"     from the root of the repository; exit 1 on a difference
For the reference ViT and ResNet: trains a LoRA on the shipped concepts into a folder, loads that with
PeftModel.from_pretrained, and compares the probabilities of pictures; then the same of random adapters of PEFT's, each
with a head. Needs: torch transformers peft pillow.
"""
import json
import pathlib
import shlex
import subprocess
import sys
import tempfile
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import ResNetForImageClassification, ViTForImageClassification

ROOT = pathlib.Path(__file__).resolve().parents[2]
NETWORKS = {
    # Class, resize to, crop to, filter, mean, deviation: what transformers' own processors do by default.
    "vit": (ViTForImageClassification, 48, 48, Image.Resampling.BILINEAR, [0.5] * 3, [0.5] * 3),
    "resnet": (ResNetForImageClassification, 256, 224, Image.Resampling.BICUBIC, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}
# Layers to adapt.
TARGETS = {"vit": ["q_proj", "fc1"], "resnet": ["convolution"]}
PICTURES = [f"assets/concepts/{name}.png" for name in ("kenney_robot/idle", "dicebear_pixel-art/03", "kenney_male_person/jump")]


def triptych(*words):
    command = [*shlex.split(sys.argv[1]), *map(str, words), "--json", "--device", "cpu"]
    out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def pixels(path, side, crop, way, mean, deviation):
    picture = Image.open(ROOT / path).convert("RGBA")
    white = Image.new("RGB", picture.size, "white")
    white.paste(picture, mask=picture.getchannel("A"))
    start = (side - crop) // 2
    white = white.resize((side, side), way).crop((start, start, start + crop, start + crop))
    x = torch.tensor(list(white.tobytes()), dtype=torch.uint8).view(crop, crop, 3).permute(2, 0, 1) / 255
    return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)


def saved(name, model, folder):
    """Folders with random adapters of PEFT's, and the adapted networks."""
    head = {"target_modules": TARGETS[name], "modules_to_save": ["classifier"]}
    lora = {"r": 3, "lora_alpha": 5, "alpha_pattern": {TARGETS[name][-1]: 2}, **head}
    configs = {"LoRA": LoraConfig(**lora), "DoRA": LoraConfig(use_dora=True, **lora), "(IA)³": IA3Config(feedforward_modules=[], **head)}
    for number, (method, config) in enumerate(configs.items()):
        adapted = get_peft_model(model(), config).eval()
        for parameter, tensor in adapted.named_parameters():
            if "magnitude" in parameter or "ia3_l" in parameter:
                tensor.mul_(1 + 0.3 * torch.randn_like(tensor))
            elif "lora_" in parameter or "modules_to_save" in parameter:
                tensor.copy_(0.1 * torch.randn_like(tensor))
        adapted.save_pretrained(folder / str(number))
        yield method, folder / str(number), adapted


def apart(adapted, base, folder, preparation, classes):
    """The largest difference of a probability, over pictures."""
    ours = triptych("classify", "--model", base, "--adapter", folder, "--top", classes, *PICTURES)
    worst = 0.0
    for path, seen in zip(PICTURES, ours["pictures"], strict=True):
        theirs = adapted(pixels(path, *preparation).unsqueeze(0)).logits.softmax(1)[0]
        worst = max([worst] + [abs(guess["probability"] - float(theirs[guess["index"]])) for guess in seen["top"]])
    return worst


def main():
    torch.set_grad_enabled(False)
    torch.manual_seed(7)
    worst = 0.0
    for name, (network, *preparation) in NETWORKS.items():
        with tempfile.TemporaryDirectory() as scratch:
            out, base = pathlib.Path(scratch) / "peft", ROOT / "tests/reference" / name
            options = ["--set", "rank=3", "--set", "alpha=7", "--steps", 20, "--lr", 0.02]
            taught = triptych("train", "--model", base, "--data", "assets/concepts", "--method", "lora", *options, "--out", out)
            classes = len(taught["classes"])
            model = lambda: network.from_pretrained(base, num_labels=classes, ignore_mismatched_sizes=True)
            adapted = {"Triptych's LoRA": (out, PeftModel.from_pretrained(model(), out).eval())}
            for method, folder, theirs in saved(name, model, pathlib.Path(scratch)):
                adapted[f"PEFT's {method}"] = folder, theirs
            for what, (folder, theirs) in adapted.items():
                difference = apart(theirs, base, folder, preparation, classes)
                worst = max(worst, difference)
                print(f"{name}, {what}: within {difference:.1e}")
    sys.exit(worst > 1e-4)


if __name__ == "__main__":
    main()
