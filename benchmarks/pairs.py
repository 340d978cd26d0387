"""Does a lift help with two subjects? A model of its own for them, in minutes on a GPU, and its bars.

    python benchmarks/pairs.py train --folder runs/pairs --device cuda --budget 200
    python benchmarks/pairs.py measure --folder runs/pairs
    python benchmarks/pairs.py picture --folder runs/pairs --out pairs.png

The world is in `pairs_world.py`. The models are the Menagerie's, wider; they are trained by its losses, but by the
clock: each stage has a share of the budget, and its learning rate follows what is used of that. Figures are drawn once,
and put together into pictures where the networks are, so that no two pictures are the same and none is waited for.
Guidance is chosen on the tune half; everything else is on the report half.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import platform
import random
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from torch.nn import functional as F

import pairs_world as pw
import rarelift
from measure import NOT_RUN, fingerprint, table, versions, write_section
from pairs_world import ASKED, HEADS, KINDS, OF_SUBJECT, SIZE, TILE, PairPrompt
from rarelift import pipelines
from rarelift.bench import stats
from rarelift.menagerie import recipe, train
from rarelift.menagerie.recipe import JOINT_WIDTH, Preset
from rarelift.menagerie.world import VALUES

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

RESULTS = Path(__file__).parent / "results" / "pairs.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "menagerie.md"
# The steps are bounds; on the GPU the clock ends a stage long before.
PRESETS = {
    "gpu-short": Preset((96, 128), 10**5, (32, 64, 96), 10**5, 64, 256, 4, 8, 10**6, 192, 8e-4, 10**5, 0),
    "cpu": Preset((96, 128), 10**5, (16, 32, 64), 10**5, 16, 192, 3, 8, 10**6, 64, 1e-3, 10**5, 0),
    "tiny": Preset((16, 16), 3, (8, 8, 8), 3, 4, 32, 2, 2, 4, 4, 1e-3, 3, 0),
}
ROWS = {"gpu-short": 2**19, "cpu": 2**17, "tiny": 64}  # captions drawn before training
# Shares of the budget that are gone when a stage ends. On a GPU the first three, too small to fill it, run at once.
ENDS = {"vae": 0.20, "judge": 0.30, "text": 0.38, "transformer": 0.97}
TOGETHER = 0.25
SEEN = ("text", "vae", "judge", "transformer")
SHARD = "12MB"
AHEAD = 4  # batches that are encoded at once for the transformer
LOOK = 20  # steps between two looks at the loss
PART = 14 * 2**20  # bytes of files in one tar of --pack


# ---------------------------------------------------------------------------------------------- pictures


class Easel:
    """Puts pairs into pictures, on the device of the networks."""

    def __init__(self, sheet: np.ndarray, device: str) -> None:
        self.sheet = torch.from_numpy(sheet).to(device).flatten(0, 1)
        self.grounds = torch.from_numpy(pw.grounds()).to(device)
        self.device = device
        if device.startswith("cuda"):
            torch.set_float32_matmul_precision("high")  # of what autocast leaves in float32
            torch.backends.cudnn.benchmark = True

    def paint(self, labels: torch.Tensor) -> torch.Tensor:
        """Pictures of `labels` [B, 10], moved and mirrored at random: floats in -1..1, [B, 3, SIZE, SIZE]."""
        n = len(labels)
        middle = middles(labels[:, 8].long(), torch.rand(n, 2, 2, device=self.device))
        corner = middle - torch.tensor(pw.BODY, device=self.device)
        mirrored = torch.rand(n, 2, device=self.device) < 0.5
        slide = torch.randint(SIZE, (n,), device=self.device)
        return self.compose(labels, corner, mirrored, slide)

    def compose(
        self, labels: torch.Tensor, corner: torch.Tensor, mirrored: torch.Tensor, slide: torch.Tensor
    ) -> torch.Tensor:
        """As `paint`, with the top left corner (x, y) of each tile [B, 2, 2], what is mirrored, where scenes begin."""
        labels = labels.long()
        along = torch.arange(SIZE, device=self.device)
        columns = slide[:, None] + along
        picture = self.grounds[labels[:, 9, None, None], along[None, :, None], columns[:, None, :]].float()
        sizes = [len(VALUES[a]) for a in OF_SUBJECT]
        for k in range(2):
            figure = torch.zeros_like(slide)
            for column, size in enumerate(sizes, 4 * k):
                figure = figure * size + labels[:, column]
            x, y = along - corner[:, k, :1], along - corner[:, k, 1:]
            inside = ((y >= 0) & (y < TILE))[:, :, None] & ((x >= 0) & (x < TILE))[:, None, :]
            x = torch.where(mirrored[:, k, None], TILE - 1 - x, x).clamp(0, TILE - 1)
            tile = self.sheet[figure[:, None, None], y.clamp(0, TILE - 1)[:, :, None], x[:, None, :]]
            tile = tile.float() * inside[..., None]
            picture = tile[..., :3] + (1 - tile[..., 3:] / 255) * picture
        return picture.round().clamp(0, 255).permute(0, 3, 1, 2) / 127.5 - 1

    def balanced(self, n: int) -> torch.Tensor:
        """Labels [n, 10] with every value equally likely."""
        return torch.stack([torch.randint(size, (n,), device=self.device) for size in HEADS], 1)


def middles(arrangement: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
    """Where the middles (x, y) of the two animals are, [B, 2, 2], for numbers `chance` in 0..1 of that shape.

    The first is always before the second in x + y, so "first" means the same in both arrangements.
    """
    side = torch.tensor([[[25, 54], [71, 54]], [[48, 30], [48, 77]]], device=chance.device)
    reach = torch.tensor([[[4, 6], [4, 6]], [[12, 1], [12, 1]]], device=chance.device)
    return (side[arrangement] + reach[arrangement] * (2 * chance - 1)).round().long()


# ------------------------------------------------------------------------------------------------ the judge


class Reader(nn.Module):
    """Names both animals of a picture: a ResNet whose last map is read place by place, since places matter here."""

    def __init__(self, widths: tuple[int, ...] = (48, 96, 128), hidden: int = 256) -> None:
        from transformers import ResNetConfig, ResNetModel

        super().__init__()
        config = ResNetConfig(
            embedding_size=widths[0], hidden_sizes=list(widths), depths=[2] * len(widths), layer_type="basic"
        )
        self.net = ResNetModel(config)
        side = SIZE // 2 ** (len(widths) + 1)
        self.head = nn.Sequential(
            nn.Conv2d(widths[-1], 48, 1),
            nn.Flatten(),
            nn.Linear(48 * side**2, hidden),
            nn.GELU(),
            nn.Linear(hidden, sum(HEADS)),
        )

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits of each of `HEADS` for pictures in -1..1, [B, 3, SIZE, SIZE]."""
        logits: torch.Tensor = self.head(self.net(images).last_hidden_state)
        return torch.split(logits, list(HEADS), 1)

    @torch.no_grad()
    def read(self, images: torch.Tensor) -> torch.Tensor:
        """The most likely labels, [B, 10]."""
        return torch.cat([torch.stack([part.argmax(1) for part in self(some)], 1) for some in torch.split(images, 256)])


# ----------------------------------------------------------------------------------------------- training


@dataclass
class Studio:
    """What every stage needs."""

    preset: Preset
    easel: Easel

    @property
    def device(self) -> str:
        return self.easel.device

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    def autocast(self) -> torch.autocast:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.cuda or train.bf16_is_fast())


class Captions:
    """The long-tailed world: what pictures show, and the token ids of a caption of each."""

    def __init__(self, labels: np.ndarray, words: np.ndarray, studio: Studio) -> None:
        self.tokenizer = recipe.build_tokenizer(frozenset(pw.lexicon()), pw.max_words() + 2)
        ids, empty = token_ids(words, self.tokenizer)
        self.labels, self.ids, self.empty = (part.to(studio.device) for part in (torch.from_numpy(labels), ids, empty))
        self.studio = studio

    def draw(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`n` pictures and the ids of their captions."""
        rows = torch.randint(len(self.labels), (n,), device=self.labels.device)
        return self.studio.easel.paint(self.labels[rows]), self.ids[rows]


def token_ids(words: np.ndarray, tokenizer: CLIPTokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of words as `draw_rows` gives them to what `tokenizer` makes of these words; and the empty caption."""
    empty = torch.tensor(tokenizer("", padding="max_length").input_ids)
    number = torch.tensor(tokenizer.convert_tokens_to_ids([f"{word}</w>" for word in pw.lexicon()]))
    said = torch.from_numpy(words.astype(np.int64))
    there = said != pw.NO_WORD
    ids = empty.repeat(len(said), 1)
    # CLIP pads with its end token, so the end needs no place of its own
    ids[:, 1:-1] = torch.where(there, number[said.clamp(max=len(number) - 1)], empty[2:])
    return ids, empty


def fit(
    studio: Studio,
    stage: str,
    networks: nn.Module,
    loss_of: Callable[[], torch.Tensor],
    *,
    seconds: float,
    steps: int,
    batch: int,
    learning_rate: float,
    decay_from: float = 0.0,
    ema: float | None = None,
) -> dict[str, Any]:
    """As `train.fit`, for `seconds` or `steps`, whichever end first; nothing is saved on the way."""
    trained = [p for p in networks.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=studio.cuda)
    state = [v for v in networks.state_dict().values() if v.is_floating_point()]
    average = [v.clone() for v in state]
    recent: list[torch.Tensor] = []
    losses: list[list[float]] = []
    started = said = time.monotonic()
    step, used = 0, 0.0
    networks.train()
    while used < 1:
        scale = min(1.0, (step + 1) / 100, (1 - used) / (1 - decay_from))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * scale
        loss = loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if ema:
            torch._foreach_lerp_(average, state, 1 - min(ema, (step + 1) / (step + 10)))
        step += 1
        recent.append(loss.detach())
        used = max((time.monotonic() - started) / seconds, step / steps)
        if len(recent) == LOOK or used >= 1:  # looked at now and then: to look is to wait for the GPU
            mean = float(torch.stack(recent).mean())
            if not np.isfinite(mean):
                raise FloatingPointError(f"stage {stage!r}: the loss is {mean} at step {step}")
            losses.append([step, round(mean, 5)])
            recent = []
            if time.monotonic() - said > 10 or used >= 1:
                said = time.monotonic()
                print(f"{stage}: {said - started:.0f} s, step {step}, loss {mean:.4f}", flush=True)
    if ema:
        for now, kept in zip(state, average, strict=True):
            now.copy_(kept)
    networks.eval().requires_grad_(False)
    return {
        "steps": step,
        "samples": step * batch,
        "seconds": round(time.monotonic() - started, 1),
        "losses": [*losses[: -1 : max(1, len(losses) // 100)], losses[-1]],
    }


def train_text(studio: Studio, captions: Captions, seconds: float) -> tuple[nn.ModuleDict, dict[str, Any]]:
    """Two CLIP text encoders, contrastively, as in the Menagerie."""
    networks = nn.ModuleDict()
    for i, width in enumerate(studio.preset.text_widths):
        networks[f"encoder_{i}"] = recipe.build_text_encoder(width, captions.tokenizer)
        networks[f"tower_{i}"] = train.tower(width, SIZE)
    scales = nn.ParameterList([torch.tensor(2.5), torch.tensor(2.5)])
    networks["scales"] = scales
    networks.to(studio.device)

    def loss_of() -> torch.Tensor:
        images, ids = captions.draw(studio.preset.batch)
        with studio.autocast():
            made = [
                (networks[f"tower_{i}"](images), networks[f"encoder_{i}"](ids).text_embeds, scale)
                for i, scale in enumerate(scales)
            ]
        return torch.stack([train.contrastive(i.float(), t.float(), ids, scale) for i, t, scale in made]).mean()

    record = fit(
        studio,
        "text",
        networks,
        loss_of,
        seconds=seconds,
        steps=studio.preset.text_steps,
        batch=studio.preset.batch,
        learning_rate=1e-3,
        decay_from=0.5,
    )
    return networks, record


def train_vae(studio: Studio, seconds: float) -> tuple[Any, dict[str, Any]]:
    """The autoencoder, on balanced pictures; then its PSNR on fresh ones."""
    vae = recipe.build_vae(studio.preset.vae_channels, SIZE).to(studio.device, memory_format=torch.channels_last)
    batch = studio.preset.vae_batch

    def loss_of() -> torch.Tensor:
        images = studio.easel.paint(studio.easel.balanced(batch))
        with studio.autocast():
            posterior = vae.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist
            output = vae.decode(posterior.sample()).sample
        return train.vae_loss(images, output.float(), posterior.mean.float(), posterior.logvar.float())

    record = fit(
        studio,
        "vae",
        vae,
        loss_of,
        seconds=seconds,
        steps=studio.preset.vae_steps,
        batch=batch,
        learning_rate=1.5e-3,
        decay_from=0.2,
        ema=0.995,
    )
    with torch.no_grad():
        images = studio.easel.paint(studio.easel.balanced(8 * batch))
        output = torch.cat(
            [vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1) for x in torch.split(images, batch)]
        )
    record["psnr_db"] = round(float(10 * torch.log10(4 / (output - images).square().mean((1, 2, 3))).mean()), 2)
    return vae, record


def train_judge(studio: Studio, seconds: float) -> tuple[Reader, dict[str, Any]]:
    """The judge, on balanced pictures, half of them blurred or noisy; then its accuracy on fresh clean ones."""
    reader = Reader().to(studio.device)

    def loss_of() -> torch.Tensor:
        labels = studio.easel.balanced(studio.preset.batch)
        with studio.autocast():
            logits = reader(train.half_roughened(studio.easel.paint(labels)))
        return torch.stack([F.cross_entropy(part.float(), labels[:, i]) for i, part in enumerate(logits)]).sum()

    record = fit(
        studio,
        "judge",
        reader,
        loss_of,
        seconds=seconds,
        steps=studio.preset.judge_steps,
        batch=studio.preset.batch,
        learning_rate=2e-3,
        decay_from=0.2,
        ema=0.995,
    )
    labels = studio.easel.balanced(32 * studio.preset.batch)
    right = (
        torch.cat([reader.read(studio.easel.paint(some)) == some for some in torch.split(labels, 256)]).float().mean(0)
    )
    names = [f"{place} {a}" for place in ("first", "second") for a in OF_SUBJECT] + ["arrangement", "scene"]
    record["accuracy"] = dict(zip(names, (round(v, 5) for v in right.tolist()), strict=True))
    return reader, record


def build_transformer(studio: Studio, compiled: bool) -> Any:
    transformer = recipe.build_transformer(studio.preset, SIZE).to(studio.device)
    if compiled:
        torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs as it is
        for block in transformer.transformer_blocks:  # one graph serves all but the last, and is made in seconds
            block.compile()
    return transformer


def warm(studio: Studio, _: float) -> tuple[nn.Module, dict[str, Any]]:
    """Compile the blocks once, so that they are in the compiler's cache on disk when the transformer's turn comes."""
    transformer, preset = build_transformer(studio, compiled=True), studio.preset
    latents = torch.randn(preset.batch, 8, *[transformer.config.sample_size] * 2, device=studio.device)
    stream = torch.randn(preset.batch, 2 * (pw.max_words() + 2), JOINT_WIDTH, device=studio.device)
    pooled = torch.randn(preset.batch, sum(preset.text_widths), device=studio.device)
    with studio.autocast():
        loss = train.flow_loss(transformer, latents, stream, pooled)
    loss.backward()  # type: ignore[no-untyped-call]
    return nn.Module(), {}


def train_transformer(
    studio: Studio, captions: Captions, text: nn.ModuleDict, vae: Any, seconds: float, *, compiled: bool
) -> tuple[Any, dict[str, Any]]:
    """The MM-DiT by rectified flow on long-tailed pictures, one caption in ten empty."""
    transformer = build_transformer(studio, compiled)
    batch = studio.preset.batch
    with torch.no_grad():
        latents = vae.encode(captions.draw(batch)[0]).latent_dist.mean
    vae.register_to_config(shift_factor=float(latents.mean()), scaling_factor=float(1 / latents.std()))

    @torch.no_grad()
    def batches() -> Iterator[tuple[torch.Tensor, ...]]:
        """A few at a time, since the host has more to do for frozen networks than the GPU."""
        images, ids = captions.draw(AHEAD * batch)
        latents = vae.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist.sample().float()
        latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
        untold = torch.rand(len(ids), 1, device=studio.device) < 0.1
        stream, pooled = train.text_stream(text, torch.where(untold, captions.empty, ids))
        return zip(*(torch.split(part, batch) for part in (latents.contiguous(), stream, pooled)), strict=True)

    ready: Iterator[tuple[torch.Tensor, ...]] = iter(())

    def loss_of() -> torch.Tensor:
        nonlocal ready
        with studio.autocast():
            made = next(ready, None)
            if made is None:
                ready = batches()
                made = next(ready)
            return train.flow_loss(transformer, *made)

    record = fit(
        studio,
        "transformer",
        transformer,
        loss_of,
        seconds=seconds,
        steps=studio.preset.steps,
        batch=batch,
        learning_rate=studio.preset.learning_rate,
        decay_from=0.5,
        ema=0.998,
    )
    record["compiled"] = compiled
    return transformer, record


ASIDE: dict[str, Callable[[Studio, float], tuple[nn.Module, dict[str, Any]]]] = {
    "vae": train_vae,
    "judge": train_judge,
    "warm": warm,
}


def aside(stage: str, preset_name: str, seed: int, device: str, sheet: np.ndarray, until: float) -> bytes:
    """Train the autoencoder or the judge until the clock says `until`; its weights and record, for `torch.load`."""
    studio = Studio(PRESETS[preset_name], Easel(sheet, device))
    torch.manual_seed(1000 * seed + list(ASIDE).index(stage))
    network, record = ASIDE[stage](studio, max(until - time.time(), 1.0))
    kept = io.BytesIO()
    torch.save({"state": network.state_dict(), "record": record}, kept)
    return kept.getvalue()


def processes(workers: int, method: str) -> ProcessPoolExecutor | nullcontext[None]:
    """So many of them, or none where this one does it all."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context(method)) if workers > 1 else nullcontext()


def run_training(
    folder: Path, preset_name: str, *, device: str, seed: int, budget: float, workers: int, compiled: bool
) -> dict[str, Any]:
    """Train every part within `budget` seconds and write it to `folder`; returns the record."""
    train.check_out(folder)
    began = time.time()  # one clock for all processes
    preset, together = PRESETS[preset_name], device.startswith("cuda")
    ends = {stage: began + budget * (TOGETHER if together else share) for stage, share in ENDS.items()}
    n = ROWS[preset_name]
    parts = min(64, n)
    stages: dict[str, Any] = {}
    kept: dict[str, Callable[[], bytes]] = {}
    # forked, so that no worker loads torch anew; safe, since torch has made no threads yet. CUDA wants its own anew
    with processes(workers, "fork") as drawing, processes(len(ASIDE) if together else 1, "spawn") as training:
        everywhere = drawing.map if drawing else map
        figures = everywhere(pw.figures, VALUES["animal"])
        rows = everywhere(pw.draw_rows, [f"{seed}/{i}" for i in range(parts)], [n // parts] * parts)
        sheet = np.stack(list(figures))
        for stage in ASIDE if together and compiled else ("vae", "judge"):
            job = partial(aside, stage, preset_name, seed, device, sheet, ends.get(stage, 0.0))
            kept[stage] = training.submit(job).result if training else partial(bytes, job())
        labels, words = (np.concatenate(part) for part in zip(*rows, strict=True))
        print(f"figures and {len(labels):,} captions: {time.time() - began:.0f} s", flush=True)
        studio = Studio(preset, Easel(sheet, device))
        captions = Captions(labels, words, studio)
        torch.manual_seed(1000 * seed + len(ASIDE))
        text, stages["text"] = train_text(studio, captions, max(ends["text"] - time.time(), 1.0))
        vae, reader = recipe.build_vae(preset.vae_channels, SIZE), Reader()
        for stage, network in (("vae", vae), ("judge", reader)):
            saved = torch.load(io.BytesIO(kept[stage]()), weights_only=True, map_location="cpu")
            network.load_state_dict(saved["state"])
            network.eval().requires_grad_(False)
            stages[stage] = saved["record"]
    vae.to(device, memory_format=torch.channels_last)
    left = max(began + ENDS["transformer"] * budget - time.time(), 1.0)
    transformer, stages["transformer"] = train_transformer(studio, captions, text, vae, left, compiled=compiled)
    export(folder, captions.tokenizer, text, vae, reader, transformer)
    facts = {
        "preset": preset_name,
        "sizes": asdict(preset),
        "seed": seed,
        "budget": budget,
        "seconds": round(time.time() - began, 1),
        "device": torch.cuda.get_device_name() if together else platform.machine(),
        "cores": os.cpu_count(),
        "captions": len(labels),
        **versions(),
        "stages": stages,
    }
    (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def export(
    folder: Path, tokenizer: CLIPTokenizer, text: nn.ModuleDict, vae: Any, reader: Reader, transformer: Any
) -> None:
    """`pipeline/` as diffusers loads it and `judge.safetensors`, in fp16."""
    from diffusers import StableDiffusion3Pipeline
    from safetensors.torch import save_file

    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=recipe.build_scheduler(),
        vae=vae,
        text_encoder=text["encoder_0"],
        tokenizer=tokenizer,
        text_encoder_2=text["encoder_1"],
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    folder.mkdir(parents=True, exist_ok=True)
    pipe.to("cpu", torch.float16).save_pretrained(folder / "pipeline", max_shard_size=SHARD)
    defaults = {
        "height": SIZE,
        "width": SIZE,
        "num_inference_steps": 16,
        "guidance_scale": 3.0,
        "max_sequence_length": tokenizer.model_max_length,
    }
    (folder / "pipeline" / pipelines.GENERATION).write_text(json.dumps(defaults, indent=2) + "\n")
    state = {k: v.half() if v.is_floating_point() else v for k, v in reader.state_dict().items()}
    save_file({k: v.cpu().contiguous() for k, v in state.items()}, folder / "judge.safetensors")


def pack(folder: Path, out: Path) -> list[Path]:
    """The files of `folder` in tars of at most `PART` bytes each, `pairs-0.tar` and so on, to be untarred in turn."""
    parts: list[list[Path]] = []
    files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: -p.stat().st_size)
    room: list[int] = []
    for path in files:
        size = path.stat().st_size + 2048  # its header and padding
        fits = next((i for i, left in enumerate(room) if size <= left), None)
        if fits is None:
            fits = len(room)
            room.append(PART)
            parts.append([])
        room[fits] -= size
        parts[fits].append(path)
    out.mkdir(parents=True, exist_ok=True)
    made = []
    for i, part in enumerate(parts):
        made.append(out / f"pairs-{i}.tar")
        with tarfile.open(made[-1], "w") as tar:
            for path in part:
                tar.add(path, path.relative_to(folder))
    return made


# -------------------------------------------------------------------------------------------- measuring

GUIDANCE = (1.0, 2.0, 3.0, 5.0)
STEPS = 16
TUNE = 120
DRAWS = 8
ALPHA = 1.5  # the default of rarelift.apply
BARS = {
    "common: all right": 0.85,
    "rare: lower than common by": 0.15,
    f"rare: best of {DRAWS} right": 0.80,
    "autoencoder: PSNR in dB": 26.0,
    "judge: its worst attribute": 0.99,
}


@dataclass(frozen=True)
class Cell:
    """One suite at one guidance; `alpha` None is untouched. A seed belongs to a prompt's place, so noise is shared."""

    suite: pw.Suite
    split: pw.Split
    n: int
    seeds: int
    guidance: float
    alpha: float | None = None

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def prompts(self) -> list[PairPrompt]:
        return pw.prompts(self.suite, self.n, split=self.split)


class Bench:
    """Draws and judges cells with the models of `folder`, and keeps what came out in `file`, one cell a line."""

    def __init__(self, folder: Path, file: Path, device: str | None, batch: int) -> None:
        self.facts = json.loads((folder / "training.json").read_text())
        self.folder, self.file, self.batch = folder, file, batch
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.weights = fingerprint(str(folder / "pipeline"))
        self.done: dict[str, np.ndarray] = {}
        for line in file.read_text().splitlines() if file.is_file() else []:
            record = json.loads(line)
            if record["weights"] != self.weights:
                raise ValueError(f"{file} was drawn with other weights ({record['weights']}); move it away")
            self.done[json.dumps(record["cell"], sort_keys=True)] = unpack(record["right"])

    @cached_property
    def model(self) -> pipelines.Model:
        dtype = torch.bfloat16 if self.device != "cpu" or train.bf16_is_fast() else torch.float32
        return pipelines.load(str(self.folder / "pipeline"), dtype=dtype, device=self.device)

    @cached_property
    def reader(self) -> Reader:
        from safetensors.torch import load_file

        reader = Reader()
        reader.load_state_dict({k: v.float() for k, v in load_file(self.folder / "judge.safetensors").items()})
        return reader.to(self.device).eval()

    def images(
        self, prompts: Sequence[PairPrompt], seeds: int, guidance: float, alpha: float | None
    ) -> list[Image.Image]:
        """`seeds` pictures of each prompt in turn."""
        with rarelift.apply(self.model.pipe, alpha=alpha) if alpha is not None else nullcontext():
            return pipelines.text_to_image(
                self.model,
                [p.text for p in prompts for _ in range(seeds)],
                [1000 * i + seed for i in range(len(prompts)) for seed in range(seeds)],
                batch_size=self.batch,
                guidance_scale=guidance,
                num_inference_steps=STEPS,
            )

    def run(self, cell: Cell) -> None:
        """Draw `cell` unless the file holds it."""
        if cell.key in self.done:
            return
        started = time.monotonic()
        prompts = cell.prompts
        seen = self.reader.read(to_pixels(self.images(prompts, cell.seeds, cell.guidance, cell.alpha), self.device))
        rows = seen.tolist()
        right = np.array(
            [pw.verdict(p, rows[i * cell.seeds + s]) for i, p in enumerate(prompts) for s in range(cell.seeds)]
        )
        record = {
            "cell": asdict(cell),
            "right": packed(right),
            "weights": self.weights,
            "seconds": round(time.monotonic() - started, 1),
            "made": {**versions(), "device": self.device, "dtype": str(self.model.pipe.dtype)},
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self.done[cell.key] = right
        print(f"{cell.key}: {right.all(1).mean():.3f} all right, {record['seconds']} s", flush=True)


def to_pixels(images: Sequence[Image.Image], device: str) -> torch.Tensor:
    """Pictures as the judge reads them."""
    array = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
    return array.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def packed(right: np.ndarray) -> str:
    """[N, 6] booleans as N letters, each with the verdicts as bits."""
    return "".join(chr(ord("0") + int(v)) for v in right @ (1 << np.arange(right.shape[1])))


def unpack(text: str) -> np.ndarray:
    values = np.array([ord(c) - ord("0") for c in text])
    return np.asarray((values[:, None] >> np.arange(len(ASKED))) & 1 == 1)


@dataclass(frozen=True)
class Plan:
    """What is measured: prompts a suite, seeds a prompt; rare ones have `DRAWS` untouched."""

    tune: int = TUNE
    report: int = 400
    seeds: int = 4

    def tuning(self) -> list[Cell]:
        return [Cell(s, "tune", self.tune, 1, g) for g in GUIDANCE for s in ("common", "rare")]

    def reports(self, guidance: float) -> dict[str, Cell]:
        return {
            "common": Cell("common", "report", self.report, self.seeds, guidance),
            "rare": Cell("rare", "report", self.report, DRAWS, guidance),
            "lifted": Cell("rare", "report", self.report, self.seeds, guidance, ALPHA),
            "lifted common": Cell("common", "report", self.report, self.seeds, guidance, ALPHA),
        }


def best_guidance(bench: Bench, plan: Plan) -> float:
    """The guidance with the highest mean of common and rare success on the tune half."""
    return max(GUIDANCE, key=lambda g: sum(bench.done[c.key].all(1).mean() for c in plan.tuning() if c.guidance == g))


def measure(bench: Bench, plan: Plan, limit: float) -> str:
    """Draw what is missing, as long as less than `limit` seconds are gone; the section of the page."""
    began = time.monotonic()

    def run(cells: Iterable[Cell]) -> bool:
        for cell in cells:
            if time.monotonic() - began > limit and cell.key not in bench.done:
                return False
            bench.run(cell)
        return True

    if run(plan.tuning()):
        run(plan.reports(best_guidance(bench, plan)).values())
    return section(bench, plan)


def section(bench: Bench, plan: Plan) -> str:
    """Tables of all that was drawn; what was not says so."""
    sweep = {c: f"{bench.done[c.key].all(1).mean():.3f}" if c.key in bench.done else NOT_RUN for c in plan.tuning()}
    rows = [[f"{g:g}", *(v for c, v in sweep.items() if c.guidance == g)] for g in GUIDANCE]
    parts = [
        training_says(bench.facts),
        f"All that was asked right, tune half, {plan.tune} prompts a suite, one seed, by guidance_scale:",
        table(["guidance_scale", "common", "rare"], rows),
    ]
    if NOT_RUN in sweep.values():
        return "\n\n".join(parts)
    guidance = best_guidance(bench, plan)
    cells = plan.reports(guidance)
    rights = {name: bench.done[cell.key] for name, cell in cells.items() if cell.key in bench.done}
    parts += [
        f"At the best of these, guidance_scale {guidance:g}, report half; 95% intervals clustered by prompt:",
        table(["bar", "at least", "measured", "holds"], bars(bench.facts, plan, rights)),
        "Where it fails, the share in which each is right (what is not named counts as right):",
        table(
            ["suite", "prompts x seeds", *ASKED],
            [
                [name, f"{plan.report} x {cells[name].seeds}", *(f"{v:.3f}" for v in right.mean(0))]
                for name, right in rights.items()
            ],
        ),
        f"By kind, and with `rarelift.apply` at its defaults (alpha {ALPHA:g}) on the same noise:",
        table(["kind", "suite", "untouched", "lifted", "difference"], list(kinds(plan, cells, rights))),
    ]
    return "\n\n".join(parts)


def training_says(facts: dict[str, Any]) -> str:
    stages = facts["stages"]
    seen = ", ".join(f"{name} {stages[name]['samples']:,} in {stages[name]['seconds']:.0f} s" for name in SEEN)
    return (
        f"Trained in {facts['seconds']:.0f} s on {facts['device']} with {facts['cores']} cores, seed {facts['seed']}; "
        f"pictures seen: {seen}."
    )


def bars(facts: dict[str, Any], plan: Plan, rights: dict[str, np.ndarray]) -> list[list[str]]:
    """Each bar, what was measured, and whether it holds."""
    found: list[tuple[float, str] | None] = [None] * 3
    if "common" in rights:
        common = rate(rights["common"], plan.seeds)
        found[0] = (common.value, f"{common}")
        if "rare" in rights:
            rare = rate(rights["rare"], DRAWS)
            hits = rights["rare"].all(1).reshape(-1, DRAWS).sum(1)
            known = stats.wilson(int(np.count_nonzero(hits)), len(hits))
            gap = common.value - rare.value
            found[1:] = [(gap, f"{gap:.3f}, rare being {rare}"), (known.value, f"{known}")]
    psnr, worst = facts["stages"]["vae"]["psnr_db"], min(facts["stages"]["judge"]["accuracy"].values())
    found += [(psnr, f"{psnr:.1f}"), (worst, f"{worst:.4f}")]
    return [
        [name, f"{least:g}", *((NOT_RUN, "") if got is None else (got[1], "yes" if got[0] >= least else "no"))]
        for (name, least), got in zip(BARS.items(), found, strict=True)
    ]


def rate(right: np.ndarray, seeds: int) -> stats.Estimate:
    return stats.mean(right.all(1).astype(float), clusters(len(right), seeds))


def clusters(n: int, seeds: int) -> list[int]:
    """The prompt of each of `n` pictures."""
    return [i // seeds for i in range(n)]


def kinds(plan: Plan, cells: dict[str, Cell], rights: dict[str, np.ndarray]) -> Iterator[list[str]]:
    """Success of each kind of prompt, untouched and lifted, and the paired difference."""
    for suite, other in (("common", "lifted common"), ("rare", "lifted")):
        if suite not in rights or other not in rights:
            continue
        # the rare ones have more draws untouched than lifted; the first of each prompt share their noise
        plain = rights[suite].all(1).reshape(plan.report, -1)[:, : plan.seeds].astype(float)
        lifted = rights[other].all(1).reshape(plan.report, -1).astype(float)
        of_kind = [p.kind for p in cells[suite].prompts]
        for kind in (*KINDS, "all"):
            chosen = [kind in (k, "all") for k in of_kind]
            a, b = plain[chosen].ravel(), lifted[chosen].ravel()
            of = clusters(len(a), plan.seeds)
            means = [f"{stats.mean(v, of)}" for v in (a, b)]
            yield [kind, suite, *means, f"{stats.difference(b, a, of):+.3f}"]


# -------------------------------------------------------------------------------------------- to the eye


def picture(bench: Bench, out: Path, seeds: int, guidance: float | None) -> None:
    """A labelled grid: what training shows, then common and rare prompts of each kind, untouched and lifted."""
    scale, gap, text = 2, 4, 18
    columns = 2 * seeds
    rows: list[tuple[str, list[Image.Image]]] = []
    for suite in ("common", "rare"):
        prompts = pw.prompts(suite, 2 * len(KINDS), split="report", seed=1)
        guided = guidance or bench.model.defaults["guidance_scale"]
        plain, lifted = (bench.images(prompts, seeds, guided, alpha) for alpha in (None, ALPHA))
        seen = bench.reader.read(to_pixels(plain + lifted, bench.device)).tolist()
        n = len(plain)
        for i, prompt in enumerate(prompts):
            places = [*range(i * seeds, (i + 1) * seeds), *range(n + i * seeds, n + (i + 1) * seeds)]
            marks = "".join("+" if all(pw.verdict(prompt, seen[place])) else "-" for place in places)
            says = f"{suite}: {prompt.text}   untouched {marks[:seeds]}  lifted {marks[seeds:]}"
            rows.append((says, [(plain + lifted)[place] for place in places]))
    rows = [*renders(columns), *rows]
    side = SIZE * scale + gap
    sheet = Image.new("RGB", (columns * side + gap, len(rows) * (side + text) + gap), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for i, (says, images) in enumerate(rows):
        top = gap + i * (side + text)
        pen.text((gap, top), says, fill="black", font=font)
        for k, image in enumerate(images):
            sheet.paste(image.resize((SIZE * scale,) * 2, Image.Resampling.NEAREST), (gap + k * side, top + text))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)


def renders(columns: int, n: int = 3) -> list[tuple[str, list[Image.Image]]]:
    """Rows of what training shows: `n` pairs, drawn anew in each column."""
    rng = random.Random("renders")
    drawn = [replace(pw.draw_pair(rng), relation=pw.RELATIONS[i % 3]) for i in range(n)]
    shown = {thing.animal for pair in drawn for thing in (pair.first, pair.second)}
    blank = np.zeros_like(pw.figures(drawn[0].first.animal))  # figures take seconds, so only of whom is shown
    easel = Easel(np.stack([pw.figures(a) if a in shown else blank for a in VALUES["animal"]]), "cpu")
    rows = []
    for pair in drawn:
        labels = torch.tensor([pw.placed(pair, rng) for _ in range(columns)])
        array = ((easel.paint(labels) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        rows.append((f"drawn: {pw.caption(pair)}", [Image.fromarray(a) for a in array]))
    return rows


# -------------------------------------------------------------------------------------------- commands


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    trains = commands.add_parser("train", help="train every part and write it to a folder")
    trains.add_argument("--preset", choices=PRESETS, default="gpu-short")
    trains.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    trains.add_argument("--seed", type=int, default=0)
    trains.add_argument("--budget", type=float, default=200, help="seconds for all of it (default: %(default)s)")
    trains.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that draw figures and captions")
    trains.add_argument("--no-compile", action="store_true", help="do not compile the transformer's blocks")
    trains.add_argument("--pack", type=Path, help="also put the folder's files into tars of 14 MiB here")
    measures = commands.add_parser("measure", help="draw and judge the prompts, print and write the tables")
    measures.add_argument("--prompts", type=int, default=400, help="report prompts a suite (default: %(default)s)")
    measures.add_argument("--tune", type=int, default=TUNE, help="tune prompts a suite (default: %(default)s)")
    measures.add_argument("--seeds", type=int, default=4, help="pictures a prompt (default: %(default)s)")
    measures.add_argument("--limit", type=float, default=float("inf"), help="begin no cell after so many seconds")
    measures.add_argument(
        "--out", type=Path, default=RESULTS, help="verdicts; but for the default, the tables go beside them, as .md"
    )
    pictures = commands.add_parser("picture", help="draw a labelled grid")
    pictures.add_argument("--out", type=Path, required=True)
    pictures.add_argument("--seeds", type=int, default=3)
    pictures.add_argument("--guidance", type=float)
    for command in (measures, pictures):
        command.add_argument("--device", help="a GPU where there is one")
        command.add_argument("--batch", type=int, default=256, help="prompts a call (default: %(default)s)")
    for command in commands.choices.values():
        command.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args(arguments)
    if args.command == "train":
        facts = run_training(
            args.folder,
            args.preset,
            device=args.device,
            seed=args.seed,
            budget=args.budget,
            workers=args.workers,
            compiled=not args.no_compile,
        )
        print(training_says(facts))
        for path in pack(args.folder, args.pack) if args.pack else []:
            print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
    elif args.command == "measure":
        bench = Bench(args.folder, args.out, args.device, args.batch)
        text = measure(bench, Plan(args.tune, args.prompts, args.seeds), args.limit)
        if args.out == RESULTS:
            write_section(PAGE, "pairs", text)
        else:
            args.out.with_suffix(".md").write_text(text + "\n")
        print(text)
    else:
        picture(
            Bench(args.folder, RESULTS.with_suffix(".none"), args.device, args.batch),
            args.out,
            args.seeds,
            args.guidance,
        )


if __name__ == "__main__":
    main()
