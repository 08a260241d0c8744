#!/usr/bin/env python3
"""Adapters there and back: what diffusers and PEFT write is read here, and what is written here they load.

Usage: adapters.py [--triptych target/debug/triptych] [--model tests/reference/sd] [--write]
       from the repository's root; needs torch diffusers peft transformers. --write renews RESULTS.md beside this file.

Every row ends in two outputs of diffusers' UNet on the same input: with the adapter as the other tool holds it, and of
the model into which Triptych wrote the adapter (`merge --into`). The largest difference is set against the largest effect
of the adapter, so that an adapter which nobody applied cannot pass.
"""
import argparse, json, pathlib, subprocess, tempfile
import diffusers, peft, torch, transformers
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import BOFTConfig, IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, get_peft_model

TOLERANCE = 2e-4
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LINEAR = ATTENTION + ["ff.net.0.proj", "ff.net.2"]
CONVOLUTIONS = ["conv1", "conv2", "conv", "proj_in", "proj_out"]

parser = argparse.ArgumentParser()
parser.add_argument("--triptych", default="target/debug/triptych")
parser.add_argument("--model", default="tests/reference/sd")
parser.add_argument("--write", action="store_true")
ARGS = parser.parse_args()
ROWS = []


def triptych(*arguments):
    done = subprocess.run([ARGS.triptych, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode: raise RuntimeError(done.stderr.strip().replace("\n", " "))
    return done.stdout


def unet(folder=None):
    return UNet2DConditionModel.from_pretrained(folder or MODEL, subfolder="unet").eval()


def pipeline(folder=None):
    return StableDiffusionPipeline.from_pretrained(folder or MODEL, safety_checker=None, requires_safety_checker=False)


def output(model):
    generator = torch.Generator().manual_seed(1)
    config = model.config
    x = torch.randn(2, config.in_channels, 16, 16, generator=generator)
    context = torch.randn(2, 9, config.cross_attention_dim, generator=generator)
    with torch.no_grad(): return model(x, 501, context).sample


def randomise(model):
    """Parameters that begin as zero or one would hide every mistake."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            with torch.no_grad(): parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def baked(adapter, work):
    """The UNet of the model into which the adapter was written."""
    out = work / f"baked{len(ROWS)}"
    triptych("merge", adapter, "--into", MODEL, "--out", out)
    return output(unet(out))


def row(name, compare):
    with tempfile.TemporaryDirectory() as work:
        try:
            theirs, ours, *other = compare(pathlib.Path(work))
            error, effect = (theirs - ours).abs().max().item(), (theirs - (other or [BASE])[0]).abs().max().item()
            fine = error <= TOLERANCE and effect > 10 * TOLERANCE
            ROWS.append((name, f"{error:.1e}", f"{effect:.2g}", "yes" if fine else "**no**"))
        except Exception as e:
            ROWS.append((name, "–", "–", f"**no**: {type(e).__name__}: {str(e)[:160]}"))
    print(*ROWS[-1], sep=" | ", flush=True)


def peft_folder(config):
    """Written by PEFT's save_pretrained."""
    def compare(work):
        model = get_peft_model(unet(), config); randomise(model); model.eval()
        model.save_pretrained(work / "adapter")
        return output(model), baked(work / "adapter", work)
    return compare


def diffusers_file(config, **how):
    """Written by StableDiffusionPipeline.save_lora_weights."""
    def compare(work):
        pipe = pipeline(); pipe.unet.add_adapter(config); randomise(pipe.unet)
        layers = peft.get_peft_model_state_dict(pipe.unet)
        if how.get("legacy"): layers = diffusers.utils.convert_state_dict_to_diffusers(layers)
        metadata = {} if how.get("legacy") else {"unet_lora_adapter_metadata": pipe.unet.peft_config["default"].to_dict()}
        StableDiffusionPipeline.save_lora_weights(work, layers, **metadata)
        return output(pipe.unet), baked(work / "pytorch_lora_weights.safetensors", work)
    return compare


def source(work, config):
    """A kohya file, made here from a PEFT folder that the rows above have compared."""
    model = get_peft_model(unet(), config); randomise(model)
    model.save_pretrained(work / "source")
    triptych("convert", work / "source", "--to", "kohya", "--model", MODEL, "--rank", 999, "--out", work / "source.safetensors")
    return work / "source.safetensors"


def loaded(format, config):
    """Written here, loaded by the other."""
    def compare(work):
        file = source(work, config)
        out = work / ("out" if format == "peft" else "out.safetensors")
        triptych("convert", file, "--to", format, "--model", MODEL, "--out", out)
        if format == "peft":
            model = peft.PeftModel.from_pretrained(unet(), out / "unet")
        else:
            pipe = pipeline(); pipe.load_lora_weights(out); model = pipe.unet
        return output(model.eval()), baked(file, work)
    return compare


def both_encoders(work):
    """A file for denoiser and text encoder: the context of a prompt, by diffusers with it loaded and from the baked model."""
    pipe = pipeline(); ids = torch.arange(3, 12)[None]
    config = LoraConfig(r=4, lora_alpha=2, target_modules=["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"])
    pipe.text_encoder.add_adapter(config); randomise(pipe.text_encoder)
    layers = peft.get_peft_model_state_dict(pipe.text_encoder)
    StableDiffusionPipeline.save_lora_weights(work, text_encoder_lora_layers=layers, text_encoder_lora_adapter_metadata=config.to_dict())
    triptych("convert", work / "pytorch_lora_weights.safetensors", "--to", "diffusers", "--model", MODEL, "--out", work / "ours.safetensors")
    out = work / "baked"
    triptych("merge", work / "ours.safetensors", "--into", MODEL, "--out", out)
    other = transformers.CLIPTextModel.from_pretrained(out, subfolder="text_encoder")
    fresh = pipeline(); fresh.load_lora_weights(work / "ours.safetensors")
    with torch.no_grad():
        here, there = fresh.text_encoder(ids)[0], other(ids)[0]
        worst = (pipe.text_encoder(ids)[0] - here).abs().max().item()
        assert worst < TOLERANCE, f"what diffusers wrote differs by {worst} from what it reads of ours"
        return here, there, pipeline().text_encoder(ids)[0]


# In f32: what is written into weights of 16 bits is rounded with them.
SCRATCH = tempfile.TemporaryDirectory()
MODEL = pathlib.Path(SCRATCH.name) / "model"
pipeline(ARGS.model).to(torch.float32).save_pretrained(MODEL)
diffusers.utils.logging.set_verbosity_error(); diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error(); transformers.utils.logging.disable_progress_bar()
BASE = output(unet())
low_rank = LoraConfig(r=4, lora_alpha=6, target_modules=LINEAR)
mixed = LoraConfig(r=4, lora_alpha=6, target_modules=LINEAR + CONVOLUTIONS, rank_pattern={"conv1": 3}, alpha_pattern={"to_q": 1})
# Written by them, read here.
for name, config in [
    ("LoRA", low_rank), ("LoRA, convolutions, ranks and alphas mixed", mixed),
    ("rsLoRA", LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=LINEAR)),
    ("DoRA", LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=LINEAR + CONVOLUTIONS)),
    ("LoHa", LoHaConfig(r=3, alpha=5, target_modules=LINEAR + CONVOLUTIONS)),
    ("LoHa, effective convolutions", LoHaConfig(r=3, alpha=5, target_modules=CONVOLUTIONS, use_effective_conv2d=True)),
    ("LoKr", LoKrConfig(r=3, alpha=5, target_modules=LINEAR + CONVOLUTIONS)),
    ("LoKr, both factors decomposed", LoKrConfig(r=2, alpha=5, decompose_both=True, target_modules=LINEAR)),
    ("LoKr, effective convolutions", LoKrConfig(r=2, alpha=5, target_modules=CONVOLUTIONS, use_effective_conv2d=True)),
    ("OFT, exact Cayley", OFTConfig(r=0, oft_block_size=4, use_cayley_neumann=False, target_modules=LINEAR)),
    ("OFT, Cayley–Neumann", OFTConfig(r=0, oft_block_size=4, use_cayley_neumann=True, target_modules=LINEAR)),
    ("OFT, one block shared", OFTConfig(r=0, oft_block_size=4, block_share=True, use_cayley_neumann=False, target_modules=LINEAR)),
    ("BOFT", BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=1, target_modules=LINEAR)),
    ("(IA)³", IA3Config(target_modules=["to_k", "to_v", "ff.net.2"], feedforward_modules=["ff.net.2"])),
]:
    row(f"PEFT folder: {name} → Triptych", peft_folder(config))
row("diffusers file: LoRA → Triptych", diffusers_file(low_rank))
row("diffusers file: ranks and alphas mixed → Triptych", diffusers_file(mixed))
row("diffusers file: DoRA → Triptych", diffusers_file(LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=LINEAR)))
row("diffusers file, names of its training scripts → Triptych", diffusers_file(LoraConfig(r=4, lora_alpha=4, target_modules=ATTENTION), legacy=True))
# Written here, loaded by them.
for format in ["kohya", "diffusers", "peft"]:
    row(f"Triptych → {format}: LoRA", loaded(format, low_rank))
    row(f"Triptych → {format}: convolutions, ranks and alphas mixed", loaded(format, mixed))
    row(f"Triptych → {format}: DoRA as its strongest directions", loaded(format, LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=LINEAR)))
row("diffusers file: text encoder → Triptych → diffusers", both_encoders)

versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}, peft {peft.__version__}, transformers {transformers.__version__}"
failed = [name for name, *_, fine in ROWS if fine != "yes"]
if ARGS.write:
    lines = ["# Adapters there and back", "", f"`python tests/compat/adapters.py --write`, with {versions}, on `{ARGS.model}`: largest difference of diffusers' UNet (text encoder) with the adapter as the other tool holds it, and of the model into which Triptych wrote it; allowed are {TOLERANCE}. Beside it the largest effect of the adapter.", "", "| | difference | effect | |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in ROWS]
    pathlib.Path(__file__).with_name("RESULTS.md").write_text("\n".join(lines) + "\n")
print(f"{len(ROWS) - len(failed)} of {len(ROWS)} rows, {versions}")
raise SystemExit(bool(failed))
