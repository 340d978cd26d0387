"""Does lifting what cross-attention reads help? A small Stable Diffusion XL, trained on the drawn world, tells.

    python benchmarks/cross_attention.py train runs/cross     train its U-Net; the same again goes on
    python benchmarks/cross_attention.py report runs/cross    draw the reporting prompts, guidance swept
    python benchmarks/cross_attention.py table                docs/cross-attention.md from the records alone

The bundled model's autoencoder and its two text encoders are taken as they are, frozen, so that the way in which the
text reaches the picture is what differs: each block reads the same text, and none changes it. `train` ends with the
folder `pipeline/`, which `DiffusionPipeline.from_pretrained` loads. Both commands need the allocator settings of
`rarelift train` in the environment to be as fast (docs/menagerie.md).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel

from measure import RESULTS, begun, fingerprint, table, thing_in, versions, write_section
from rarelift import pipelines
from rarelift.bench import stats, summary
from rarelift.bench.runs import UNTOUCHED
from rarelift.bench.stats import Estimate
from rarelift.menagerie import PIPELINE, train, world
from rarelift.prompts import Suite, load

PAGE = Path(__file__).parents[1] / "docs" / "cross-attention.md"
FILE = RESULTS / "cross.jsonl"
SUITES = {"rare": "menagerie-rare", "common": "menagerie-common"}
GUIDANCES = (1.0, 2.0, 3.0, 5.0)
METHODS = (
    UNTOUCHED,
    *(
        f"lift:cross_attention=true,alpha={alpha},tokens={tokens}"
        for tokens in ("valid", "content")
        for alpha in ("1.2", "1.5", "2")
    ),
)
CALL = {"height": world.SIZE, "width": world.SIZE, "num_inference_steps": 16, "guidance_scale": 3.0}


# ---------------------------------------------------------------- the model


@dataclass(frozen=True)
class Size:
    """A U-Net: widths, and blocks that cross-attend, by resolution. The first resolution has none, as in SDXL."""

    widths: tuple[int, ...] = (64, 96, 128)
    depths: tuple[int, ...] = (1, 1, 1)
    head: int = 32


def build_unet(size: Size, latents: int, channels: int, text: int, pooled: int) -> UNet2DConditionModel:
    """The U-Net of Stable Diffusion XL.

    Args:
        size: its widths and depths.
        latents, channels: side and channels of the latents.
        text, pooled: widths of the text and of its pooled embedding.
    """
    levels = len(size.widths) - 1
    return UNet2DConditionModel(
        sample_size=latents,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=size.widths,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * levels),
        up_block_types=(*["CrossAttnUpBlock2D"] * levels, "UpBlock2D"),
        transformer_layers_per_block=size.depths,
        attention_head_dim=[width // size.head for width in size.widths],  # diffusers takes it for the number of heads
        cross_attention_dim=text,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + pooled,
    )


def build_pipeline(size: Size) -> StableDiffusionXLPipeline:
    """The whole pipeline: the bundled autoencoder and text encoders, a new U-Net, v-prediction down to no signal."""
    bundled: Any = pipelines.load(device="cpu").pipe
    vae, text, pooled = bundled.vae, bundled.text_encoder.config, bundled.text_encoder_2.config
    unet = build_unet(
        size,
        bundled.transformer.config.sample_size,
        vae.config.latent_channels,
        text.hidden_size + pooled.hidden_size,
        pooled.projection_dim,
    )
    # of the first encoder without its projection: the pooled embedding is the second's
    states = CLIPTextModel.from_pretrained(PIPELINE / "text_encoder", dtype=torch.float32)
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=states,
        text_encoder_2=bundled.text_encoder_2,
        tokenizer=bundled.tokenizer,
        tokenizer_2=bundled.tokenizer_2,
        unet=unet,
        scheduler=DDIMScheduler(
            beta_schedule="squaredcos_cap_v2",
            prediction_type="v_prediction",
            clip_sample=False,
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        ),
        force_zeros_for_empty_prompt=False,  # it is trained with empty captions
        add_watermarker=False,
    )


# ---------------------------------------------------------------- training


def fit_unet(run: train.Run, pipe: StableDiffusionXLPipeline, steps: int, batch: int, rate: float) -> dict[str, Any]:
    """Train the U-Net as the bundled transformer was: long-tailed pictures, one caption in ten empty, EMA.

    Returns the record of `train.fit`. Raises as that does.
    """
    for part in (pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        part.eval().requires_grad_(False).to(run.device)
    unet = pipe.unet.to(run.device)
    forward = run.compiled(unet)

    def loss_of(step: int) -> Tensor:
        images, texts = train.captioned(run, "unet", step, batch, balanced=False)
        with torch.no_grad(), run.autocast():
            latents = pipe.vae.encode(images).latent_dist.sample().float() * pipe.vae.config.scaling_factor
            stream, _, pooled, _ = pipe.encode_prompt(texts, device=run.device, do_classifier_free_guidance=False)
        with run.autocast():
            return v_loss(forward, pipe.scheduler, latents, stream.float(), pooled.float())

    networks = nn.ModuleDict({"unet": unet})
    return train.fit(run, "unet", networks, loss_of, steps=steps, learning_rate=rate, decay_from=0.5, ema=0.999)


def v_loss(
    forward: Callable[..., Any], scheduler: DDIMScheduler, latents: Tensor, stream: Tensor, pooled: Tensor
) -> Tensor:
    """Squared error of v at one timestep a picture, drawn evenly, with noise of its own."""
    n, side = len(latents), world.SIZE
    steps = torch.randint(scheduler.config.num_train_timesteps, (n,), device=latents.device)
    noise = torch.randn_like(latents)
    sizes = latents.new_tensor([side, side, 0, 0, side, side]).expand(n, -1)  # as the pipeline says them
    found = forward(
        scheduler.add_noise(latents, noise, steps),
        steps,
        encoder_hidden_states=stream,
        added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes},
        return_dict=False,
    )[0]
    return F.mse_loss(found.float(), scheduler.get_velocity(latents, noise, steps))


def train_and_export(run: train.Run, size: Size, steps: int, batch: int, rate: float) -> Path:
    """Train, or go on, and write `pipeline/` and `training.json` into the folder of the run."""
    begun(run.folder / "asked.json", {"batch": batch, "learning_rate": rate})
    torch.manual_seed(run.seed)
    pipe = build_pipeline(size)
    count = sum(p.numel() for p in pipe.unet.parameters())
    print(f"a U-Net of {count / 1e6:.1f} M parameters")
    record = fit_unet(run, pipe, steps, batch, rate)
    pipe.to("cpu", torch.float16).save_pretrained(run.folder / "pipeline")
    (run.folder / "pipeline" / pipelines.GENERATION).write_text(json.dumps(CALL, indent=2) + "\n")
    facts = {**record, "batch": batch, "learning_rate": rate, "parameters": count, "versions": versions()}
    (run.folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    return run.folder / "pipeline"


# ---------------------------------------------------------------- the report


def draw(
    folder: Path, size: int, seeds: int, guidances: Sequence[float], further: Sequence[str]
) -> list[dict[str, Any]]:
    """Draw every method on the first `size` reporting prompts of each suite by `rarelift bench`; the records."""
    model = folder / "pipeline"
    for side, suite in SUITES.items():
        command = [sys.executable, "-m", "rarelift.cli", "bench", str(folder / side), "--suite", suite]
        command += ["--split", "report", "--prompts", f"{size}", "--seeds", f"{seeds}", "--model", str(model)]
        command += ["--metric", "attributes", "--batch-size", "32", *further]
        command += [word for method in METHODS for word in ("--method", method)]
        subprocess.run([*command, *(word for g in guidances for word in ("--guidance", f"{g!r}"))], check=True)
    about = {"weights": fingerprint(str(model)), "versions": versions()}
    return collected(folder, {"about": about, "training": json.loads((folder / "training.json").read_text())})


def collected(folder: Path, head: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The head with what the runs say of themselves, and a record for each side, method and guidance.

    Its `right` has a digit for each picture, prompts in the order of the suite, seed after seed.

    Raises:
        ValueError: a run was not drawn to the end, or is not of reporting prompts.
    """
    runs = {side: summary.read(folder / side) for side in SUITES}
    suites = {side: run.plan["suite"] for side, run in runs.items()}
    plan = next(iter(runs.values())).plan
    of_all = {
        "suites": suites,
        "seeds": len(plan["seeds"]),
        **{key: plan[key] for key in ("batch_size", "dtype", "call")},
    }
    found: list[dict[str, Any]] = [{**head, "about": {**head["about"], **of_all}}]
    for side, run in runs.items():
        keys = [(prompt.id, seed) for seed in plan["seeds"] for prompt in suite_of(side, suites[side]).prompts]
        for guidance, method in product(plan["guidances"], run.methods):
            group = run.groups.get((method, guidance), {})
            right = [summary.number(group[key], "success") for key in keys if key in group]
            if len(right) < len(keys) or None in right:
                raise ValueError(
                    f"{run.folder}: of {len(keys)} pictures of {method} at guidance {guidance:g}, "
                    f"{len(right) - right.count(None)} were drawn and judged; the same command without --limit goes on"
                )
            verdicts = "".join(f"{value:.0f}" for value in right)
            failed = sum("failed" in group[key] for key in keys)
            found.append({"side": side, "method": method, "guidance": guidance, "right": verdicts, "failed": failed})
    return found


def suite_of(side: str, drawn: Mapping[str, Any]) -> Suite:
    """The reporting prompts of a side, checked to be those that a run says it drew."""
    suite = load(SUITES[side], limit=drawn["n"], split="report")
    if suite.digest != drawn["digest"]:
        raise ValueError(
            f"the {side} pictures are of other prompts than the first {drawn['n']} reporting ones of {SUITES[side]}; "
            "draw into a new folder, with no --suite and no --split"
        )
    return suite


@dataclass(frozen=True)
class Effect:
    """What a lift changes: its difference to untouched at the same guidance, and p after Holm's correction."""

    difference: Estimate
    adjusted: float


def effects(rows: Sequence[Mapping[str, Any]], things: Sequence[str]) -> dict[tuple[str, float], Effect]:
    """Every lift of one side, by method and guidance, corrected over all of them.

    Args:
        rows: the records of the side.
        things: what each picture of a row is of; intervals and tests keep pictures of one thing together.
    """
    right = {(row["method"], row["guidance"]): np.array(list(row["right"]), float) for row in rows}
    tests: dict[tuple[str, float], tuple[Estimate, float]] = {}
    for (method, guidance), lifted in right.items():
        if method != UNTOUCHED:
            plain = right[UNTOUCHED, guidance]
            p = stats.p_value(lifted - plain, things)
            tests[method, guidance] = stats.difference(lifted, plain, things), p
    adjusted = stats.correct([p for _, p in tests.values()]).tolist()
    return {key: Effect(difference, p) for (key, (difference, _)), p in zip(tests.items(), adjusted, strict=True)}


def render(records: Sequence[Mapping[str, Any]]) -> str:
    """The tables of the page."""
    head, rows = records[0], records[1:]
    made, asked = head["training"], head["about"]
    suites = {side: suite_of(side, drawn) for side, drawn in asked["suites"].items()}
    things = {side: [thing_in(prompt) for prompt in suite.prompts] for side, suite in suites.items()}
    prompts = " and ".join(f"{len(suite.prompts)} {side}" for side, suite in suites.items())
    kinds = " and ".join(f"{len(set(names))} {side}" for side, names in things.items())
    parts = [
        f"A U-Net of {made['parameters'] / 1e6:.1f} M parameters, {made['steps']} steps of {made['batch']} pictures, "
        f"{made['seconds'] / 3600:.1f} hours, last loss {made['losses'][-1]:.3f}. Drawn: {prompts} prompts, "
        f"{asked['seeds']} seed{'s' * (asked['seeds'] > 1)} each. Untouched: share of pictures with every attribute "
        "right; below it each lift's difference to untouched at the same guidance, of the same prompts and noise, with "
        f"its 95% interval. The prompts ask for {kinds} things, and pictures of one thing are resampled, and their "
        "signs flipped, together. Bold: p is at most 0.05 after Holm's correction over all differences of that table."
    ]
    if failed := sum(row["failed"] for row in rows):
        parts[0] += f" {failed} pictures came out as NaN, and count as wrong."
    for side in suites:
        mine = [row for row in rows if row["side"] == side]
        found = effects(mine, things[side] * asked["seeds"])
        plain = {row["guidance"]: row["right"] for row in mine if row["method"] == UNTOUCHED}
        body = [[UNTOUCHED, *(f"{right.count('1') / len(right):.3f}" for right in plain.values())]]
        for method in dict.fromkeys(method for method, _ in found):
            body.append([short(method), *(shown(found[method, guidance]) for guidance in plain)])
        parts += [
            f"{side.capitalize()} prompts, by guidance_scale:",
            table(["", *(f"{guidance:g}" for guidance in plain)], body),
        ]
    return "\n\n".join(parts)


def shown(effect: Effect) -> str:
    text = f"{effect.difference:+.3f}"
    return f"**{text}**" if effect.adjusted <= 0.05 else text


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def short(method: str) -> str:
    return method.removeprefix("lift:cross_attention=true,").replace(",", ", ").replace("=", " ")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(dest="stage", required=True)
    training = stages.add_parser("train", help="train the U-Net and write the pipeline")
    training.add_argument("folder", type=Path, help="of the checkpoints and the pipeline")
    training.add_argument("--steps", type=int, default=3000)
    training.add_argument("--batch", type=int, default=64)
    training.add_argument("--rate", type=float, default=6e-4, help="learning rate")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--device", default="cpu")
    training.add_argument("--no-compile", action="store_true", help="slower; needs no C++ compiler")
    drawing = stages.add_parser("report", help="draw, judge, and write the page; other options go to `rarelift bench`")
    drawing.add_argument("folder", type=Path, help="that `train` wrote")
    drawing.add_argument("--prompts", type=int, default=256, help="of each suite")
    drawing.add_argument("--seeds", type=int, default=1)
    drawing.add_argument(
        "--guidance", type=float, action="append", help=f"several times; else {', '.join(f'{g:g}' for g in GUIDANCES)}"
    )
    stages.add_parser("table", help="write the page from the records; nothing is drawn")
    args, further = parser.parse_known_args(arguments)
    if further and args.stage != "report":
        parser.error(f"unknown arguments: {' '.join(further)}")
    if args.stage == "train":
        run = train.Run(args.folder, "cpu", args.seed, args.device, not args.no_compile)
        try:
            print(train_and_export(run, Size(), args.steps, args.batch, args.rate))
        except train.Stopped as stopped:
            sys.exit(str(stopped))
        return
    if args.stage == "report":
        records = draw(args.folder, args.prompts, args.seeds, args.guidance or GUIDANCES, further)
        FILE.write_text("".join(json.dumps(record) + "\n" for record in records))
    text = render(read(FILE))
    print(text)
    write_section(PAGE, "cross", text)


if __name__ == "__main__":
    main()
