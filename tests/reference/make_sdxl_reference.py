#!/usr/bin/env python3
"""Add to a reference folder that make_reference.py made: its SDXL model as one file, and what it says of other sizes.

Usage: make_sdxl_reference.py REFERENCE_DIR
Needs torch, diffusers and transformers; nothing is downloaded.
"""
import ast
import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

torch.set_grad_enabled(False)
functions = ast.parse(Path(__file__).with_name("make_reference.py").read_text()).body
exec(compile(ast.Module([f for f in functions if getattr(f, "name", "") == "to_ldm"], []), "make_reference.py", "exec"))


def unet_to_ldm(name):
    """kohya's make_unet_conversion_map (sdxl_model_util.py), for three levels of two layers."""
    blocks = []
    for i in range(3):
        for j in range(2):
            blocks.append((f"input_blocks.{3 * i + j + 1}.0.", f"down_blocks.{i}.resnets.{j}."))
            blocks.append((f"input_blocks.{3 * i + j + 1}.1.", f"down_blocks.{i}.attentions.{j}."))
        for j in range(3):
            blocks.append((f"output_blocks.{3 * i + j}.0.", f"up_blocks.{i}.resnets.{j}."))
            blocks.append((f"output_blocks.{3 * i + j}.1.", f"up_blocks.{i}.attentions.{j}."))
        blocks.append((f"input_blocks.{3 * (i + 1)}.0.op.", f"down_blocks.{i}.downsamplers.0.conv."))
        blocks.append((f"output_blocks.{3 * i + 2}.2.", f"up_blocks.{i}.upsamplers.0."))
    blocks.append(("middle_block.1.", "mid_block.attentions.0."))
    blocks += [(f"middle_block.{2 * j}.", f"mid_block.resnets.{j}.") for j in range(2)]
    inside = [("in_layers.0.", "norm1."), ("in_layers.2.", "conv1."), ("out_layers.0.", "norm2."), ("out_layers.3.", "conv2."),
              ("emb_layers.1.", "time_emb_proj."), ("skip_connection.", "conv_shortcut.")]
    ends = [("time_embed.0.", "time_embedding.linear_1."), ("time_embed.2.", "time_embedding.linear_2."),
            ("label_emb.0.0.", "add_embedding.linear_1."), ("label_emb.0.2.", "add_embedding.linear_2."),
            ("input_blocks.0.0.", "conv_in."), ("out.0.", "conv_norm_out."), ("out.2.", "conv_out.")]
    for ldm, ours in ends:
        if name.startswith(ours):
            return name.replace(ours, ldm, 1)
    [(ldm, ours)] = [(ldm, ours) for ldm, ours in blocks if name.startswith(ours)]
    rest = name[len(ours):]
    if ".resnets." in ours:
        [rest] = [rest.replace(mine, theirs, 1) for theirs, mine in inside if rest.startswith(mine)]
    return ldm + rest


def to_open_clip(state):
    """transformers' encoder → OpenCLIP's: queries, keys and values in one, the projection for use from the right."""
    out = {"logit_scale": torch.tensor(4.6052)}
    ends = {"text_model.embeddings.token_embedding.weight": "token_embedding.weight",
            "text_model.embeddings.position_embedding.weight": "positional_embedding",
            "text_model.final_layer_norm.weight": "ln_final.weight", "text_model.final_layer_norm.bias": "ln_final.bias"}
    inside = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}
    for name, x in state.items():
        if name in ends:
            out[ends[name]] = x
        elif name == "text_projection.weight":
            out["text_projection"] = x.T.contiguous()
        elif ".q_proj." in name:
            n, kind = name.split(".")[3], name.split(".")[-1]
            out[f"transformer.resblocks.{n}.attn.in_proj_{kind}"] = torch.cat([state[name.replace("q_proj", p)] for p in ("q_proj", "k_proj", "v_proj")])
        elif ".k_proj." not in name and ".v_proj." not in name and "position_ids" not in name:
            _, _, _, n, *rest = name.split(".")
            module, kind = ".".join(rest[:-1]), rest[-1]
            out[f"transformer.resblocks.{n}.{inside[module]}.{kind}"] = x
    return out


class State:
    """As much of a module as to_ldm asks for."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state


def single_file(unet, vae, text, text2):
    """The whole model's state dicts as one file's."""
    named = lambda state: {k if k.startswith("text_") else "text_model." + k: v for k, v in state.items() if "position_ids" not in k}
    sd = {"model.diffusion_model." + unet_to_ldm(k): v for k, v in unet.items()}
    sd |= to_ldm(State({}), State(vae), State({}))
    sd |= {"conditioner.embedders.0.transformer." + k: v for k, v in named(text).items()}
    sd |= {"conditioner.embedders.1.model." + k: v for k, v in to_open_clip(named(text2)).items()}
    return sd


# A layer of each network, and two that only the pooled vector and the sizes reach.
LEARN = {"unet": ["add_embedding.linear_1", "mid_block.attentions.0.proj_in", "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k"],
         "text": ["encoder.layers.0.self_attn.q_proj"], "text2": ["encoder.layers.0.mlp.fc1", "encoder.layers.2.self_attn.v_proj"]}


@torch.enable_grad()
def gradients(unet, text, text2, ids, filled, x, sizes, target):
    """Of the mean square of what is said under the prompt, less a target, with respect to weights of all networks."""
    networks = {"unet": unet, "text": getattr(text, "text_model", text), "text2": text2.text_model}
    weights = {f"{part}.{name}": networks[part].get_submodule(name).weight for part, names in LEARN.items() for name in names}
    for weight in weights.values():
        weight.requires_grad_(True)
    o2 = text2(filled, output_hidden_states=True)
    context = torch.cat([text(ids, output_hidden_states=True).hidden_states[-2], o2.hidden_states[-2]], -1)
    said = unet(x, torch.tensor([333]), context, added_cond_kwargs={"text_embeds": o2.text_embeds, "time_ids": sizes}).sample
    loss = ((said - target) ** 2).mean()
    found = torch.autograd.grad(loss, list(weights.values()))
    return {"target": target, "loss": loss.detach().reshape(1), **{f"gradient.{name}": g for name, g in zip(weights, found)}}


def main(out):
    m = out / "sdxl"
    unet, vae = UNet2DConditionModel.from_pretrained(m / "unet"), AutoencoderKL.from_pretrained(m / "vae")
    text, text2 = CLIPTextModel.from_pretrained(m / "text_encoder"), CLIPTextModelWithProjection.from_pretrained(m / "text_encoder_2")
    unet, vae, text, text2 = (x.float().eval() for x in (unet, vae, text, text2))
    sd = single_file(*(x.state_dict() for x in (unet, vae, text, text2)))
    save_file({k: v.half().contiguous() for k, v in sd.items()}, out / "sdxl_single_file.safetensors", metadata={"format": "pt"})

    tok = CLIPTokenizer.from_pretrained(str(m / "tokenizer"))
    prompt = "a photo of a cat"
    ids = tok([prompt], padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    # As SDXL's own second tokenizer has it: filled up with the first word.
    filled = ids.clone()
    end = int((ids[0] == tok.eos_token_id).nonzero()[0])
    filled[0, end + 1:] = 0
    o2 = text2(filled, output_hidden_states=True)
    context = torch.cat([text(ids, output_hidden_states=True).hidden_states[-2], o2.hidden_states[-2]], -1)
    g = torch.Generator().manual_seed(3)
    side = unet.config.sample_size
    x = torch.randn(1, 4, side, side + 4, generator=g)
    sizes = torch.tensor([[300, 517, 16, 3, side * 8, (side + 4) * 8]]).float()
    said = unet(x, torch.tensor([333]), context, added_cond_kwargs={"text_embeds": o2.text_embeds, "time_ids": sizes}).sample
    r = {"context": context, "pooled": o2.text_embeds, "unet.x": x, "unet.sizes": sizes, "unet.out": said}
    r |= gradients(unet, text, text2, ids, filled, x, sizes, torch.randn(x.shape, generator=g))
    save_file({k: v.contiguous() for k, v in r.items()}, out / "sdxl_sizes_reference.safetensors", metadata={"prompt": prompt, "t": "333"})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
