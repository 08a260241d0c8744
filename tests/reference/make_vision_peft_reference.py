#!/usr/bin/env python3
"""Make vision_peft/ (a LoRA that PEFT saved of the reference vision transformer, its head with it) and
vision_peft_reference.safetensors (pictures and what the adapted network answers).

Usage: make_vision_peft_reference.py FOLDER     holding vit/; needs: torch transformers peft safetensors.
"""
import pathlib
import sys
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import ViTForImageClassification

folder = pathlib.Path(sys.argv[1])
torch.manual_seed(50)
torch.set_grad_enabled(False)
model = ViTForImageClassification.from_pretrained(folder / "vit", num_labels=4, ignore_mismatched_sizes=True)
# An alpha that is not the rank, and another one for a part of the layers.
config = LoraConfig(
    r=3, lora_alpha=5, target_modules=["q_proj", "o_proj", "fc1"], alpha_pattern={"mlp.fc1": 2}, modules_to_save=["classifier"]
)
adapted = get_peft_model(model, config).eval()
for name, tensor in adapted.named_parameters():
    if "lora_" in name or "modules_to_save" in name:
        tensor.copy_(0.1 * torch.randn_like(tensor))
adapted.peft_config["default"].base_model_name_or_path = "vit"
adapted.save_pretrained(folder / "vision_peft")
(folder / "vision_peft" / "README.md").unlink(missing_ok=True)
size = model.config.image_size
x = torch.randn(2, 3, size, size)
save_file({"x": x, "logits": adapted(x).logits}, folder / "vision_peft_reference.safetensors")
