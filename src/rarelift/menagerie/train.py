"""Train the Menagerie models, from nothing but the drawn world.

Six stages, each checkpointed and resumable: text encoders, autoencoder, transformer, judge, clip, export. A batch is
a function of (seed, stage, step), so a run that was stopped and one that was not see the same data.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from . import recipe, suite, world
from .recipe import JOINT_WIDTH, TEXT_LENGTH, Preset

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

STAGES = ("text", "vae", "transformer", "judge", "clip")
SAVE_SECONDS = 120
JUDGED = 4096  # clean renders on which the judge is tested


@dataclass
class Run:
    """One training run: where it lives and how it computes.

    Args:
        folder: checkpoints, one `<stage>.pt` each, and the exported models.
        preset_name: name in `recipe.PRESETS`.
        seed: fixes the data, the initial weights and the noise.
        device: torch device; bf16 autocast is used where the device multiplies it natively.
        compile: compile the networks with `torch.compile`; slower to start, 1.5 times faster after.
        progress: show a bar.

    Raises:
        ValueError: an unknown preset, a device that is not there, or no C++ compiler to compile with.
    """

    folder: Path
    preset_name: str = "cpu"
    seed: int = 0
    device: str = "cpu"
    compile: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        if self.preset_name not in recipe.PRESETS:
            raise ValueError(f"unknown preset {self.preset_name!r}; there are {', '.join(recipe.PRESETS)}")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"cannot train on device {self.device!r}: {str(error).splitlines()[0]}") from None
        if self.compile and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "c++", "clang++"))):
            raise ValueError("torch.compile needs a C++ compiler and found none; install g++, or use --no-compile")

    @property
    def preset(self) -> Preset:
        return recipe.PRESETS[self.preset_name]

    @property
    def bf16(self) -> bool:
        if self.device.startswith("cuda"):
            return bool(torch.cuda.is_bf16_supported())
        return bf16_is_fast()

    def autocast(self) -> torch.autocast:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.bf16)

    def compiled(self, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return torch.compile(function) if self.compile else function

    def rng(self, stage: str, step: int) -> random.Random:
        """The source of the data of one step; also seeds torch for that step's noise."""
        torch.manual_seed(random.Random(f"{self.seed}/{stage}/{step}/noise").getrandbits(63))
        return random.Random(f"{self.seed}/{stage}/{step}")


def bf16_is_fast() -> bool:
    """Whether this CPU multiplies bfloat16 natively."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Stopped(Exception):
    """Training was interrupted after its state was saved."""


# ------------------------------------------------------------------------------------------- the loop


def fit(
    run: Run,
    stage: str,
    networks: nn.ModuleDict,
    loss_of: Callable[[int], torch.Tensor],
    *,
    steps: int,
    learning_rate: float,
    decay_from: float = 0.0,
    ema: float | None = None,
) -> dict[str, Any]:
    """Minimise `loss_of(step)` over `networks`, which end as trained (as their moving average with `ema`).

    AdamW (0.9, 0.99), gradients clipped at 1, 100 steps of warm-up, then flat until `decay_from` of the steps and
    linear to zero. Saves every two minutes, at the end, and on Ctrl-C; goes on from what was saved.

    Returns the record of the stage: steps, seconds, the mean loss of each hundredth of the run.

    Raises:
        Stopped: after Ctrl-C, once the state is on disk.
        ValueError: what is in the folder is damaged, or of another preset or seed.
        FloatingPointError: the loss is not finite; the last saved state is kept.
    """
    path = run.folder / f"{stage}.pt"
    optimizer = torch.optim.AdamW(networks.parameters(), learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    average = {k: v.detach().clone() for k, v in networks.state_dict().items()} if ema else {}
    made_by = {"preset": run.preset_name, "seed": run.seed, "steps": steps}
    record: dict[str, Any] = {"stage": stage, **made_by, "step": 0, "seconds": 0.0, "losses": []}
    if path.is_file():
        saved = _load(path, run.device)
        record = saved["record"]
        for name, wanted in made_by.items():
            if record[name] != wanted:
                raise ValueError(
                    f"{path} was trained with {name} {record[name]}, this run has {name} {wanted}; go on with the "
                    "former, or give another folder"
                )
        networks.load_state_dict(saved["networks"])
        if record["step"] < steps:
            optimizer.load_state_dict(saved["optimizer"])
            average = saved["average"]
    first = int(record["step"])
    losses: list[float] = record["losses"]
    started = saved_at = time.monotonic()
    before = float(record["seconds"])
    trained = [p for p in networks.parameters() if p.requires_grad]

    def save(step: int) -> None:
        record.update(step=step, seconds=before + time.monotonic() - started)
        done = step == steps
        if done and ema:
            networks.load_state_dict(average)
        state = {"networks": networks.state_dict(), "record": record}
        if not done:
            state |= {"optimizer": optimizer.state_dict(), "average": average}
        _write_atomically(path, lambda temporary: torch.save(state, temporary))

    networks.train()
    bar = tqdm(range(first, steps), desc=stage, initial=first, total=steps, disable=not run.progress, mininterval=1)
    done, recent = first, []
    try:
        with _interrupts_between_steps() as stopping:
            for step in bar:
                scale = min(1.0, (step + 1) / 100, (1 - step / steps) / (1 - decay_from))
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * scale
                loss = loss_of(step)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                if ema:
                    kept = min(ema, (step + 1) / (step + 10))
                    state = networks.state_dict()
                    names = [k for k, v in average.items() if v.is_floating_point()]
                    torch._foreach_lerp_([average[k] for k in names], [state[k] for k in names], 1 - kept)
                recent.append(float(loss.detach()))
                if not np.isfinite(recent[-1]):
                    raise FloatingPointError(f"stage {stage!r}: the loss is {recent[-1]} at step {step}")
                done = step + 1
                if len(recent) >= max(1, steps // 100) or done == steps:
                    losses.append(round(float(np.mean(recent)), 5))
                    bar.set_postfix(loss=f"{losses[-1]:.4f}")
                    recent = []
                if stopping():
                    save(done)
                    raise Stopped(f"stopped in stage {stage!r} at step {done} of {steps}; the same command goes on")
                if time.monotonic() - saved_at > SAVE_SECONDS:
                    save(done)
                    saved_at = time.monotonic()
    except KeyboardInterrupt:  # a second Ctrl-C, perhaps in the middle of a step: what is saved stays whole
        raise Stopped(f"stopped in stage {stage!r} at once; the same command goes on from the last save") from None
    if first < steps:
        save(steps)
    networks.eval()
    return record


@contextmanager
def _interrupts_between_steps() -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C back, so that no step is cut in half; a second one is let through. Yields "was it pressed?"."""
    pressed = False

    def press(*_: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        tqdm.write("stopping after this step; Ctrl-C again stops at once", file=sys.stderr)

    if threading.current_thread() is not threading.main_thread():  # only the main thread is told of signals
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _load(path: Path, device: str) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # each kind of damage has its own
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}); remove it to train that stage anew"
        ) from error
    return saved


def _write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(name))
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------ data


def pictures(things: list[world.Thing], rng: random.Random, device: str) -> torch.Tensor:
    """Render `things`: floats in -1..1, [B, 3, 64, 64]."""
    array = np.stack([world.render(thing, rng) for thing in things])
    return torch.from_numpy(array).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def _draw(
    run: Run, stage: str, step: int, n: int, *, balanced: bool
) -> tuple[list[world.Thing], torch.Tensor, random.Random]:
    rng = run.rng(stage, step)
    things = [world.draw_thing(rng, balanced=balanced) for _ in range(n)]
    return things, pictures(things, rng, run.device), rng


def captioned(run: Run, stage: str, step: int, n: int, *, balanced: bool) -> tuple[torch.Tensor, list[str]]:
    """What a generator is trained on in one step: `n` pictures `[n, 3, 64, 64]` and captions, one in ten empty."""
    things, images, rng = _draw(run, stage, step, n, balanced=balanced)
    return images, [world.draw_caption(thing, rng) if rng.random() > 0.1 else "" for thing in things]


class Tokens:
    """Captions to padded token ids, [B, TEXT_LENGTH]."""

    def __init__(self, device: str) -> None:
        self.tokenizer = recipe.build_tokenizer()
        self.device = device

    def __call__(self, texts: list[str]) -> torch.Tensor:
        batch = self.tokenizer(
            texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
        )
        return torch.as_tensor(batch["input_ids"], device=self.device)


def contrastive(images: torch.Tensor, texts: torch.Tensor, ids: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Symmetric contrastive loss over [B, D] features, pairs with the same caption all counted as positives."""
    logits = scale.exp().clamp(max=100) * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    same = (ids[:, None] == ids[None]).all(-1).float()
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


# ---------------------------------------------------------------------------------------------- stages


def tower(width: int, size: int = world.SIZE) -> nn.Sequential:
    """The image side of the contrastive training, thrown away afterwards."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 64), (64, 96), (96, 128)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.GroupNorm(8, outputs), nn.GELU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * (size // 16) ** 2, width))


def train_text(run: Run) -> tuple[nn.ModuleDict, dict[str, Any]]:
    """Two CLIP text encoders, contrastively on long-tailed pictures; frozen afterwards, as SD3's are."""
    torch.manual_seed(run.seed)
    networks = nn.ModuleDict()
    for i, width in enumerate(run.preset.text_widths):
        networks[f"encoder_{i}"] = recipe.build_text_encoder(width)
        networks[f"tower_{i}"] = tower(width)
    scales = nn.ParameterList([torch.tensor(2.5), torch.tensor(2.5)])
    networks["scales"] = scales
    networks.to(run.device)
    tokens = Tokens(run.device)

    def loss_of(step: int) -> torch.Tensor:
        things, images, rng = _draw(run, "text", step, 128 if run.preset_name != "tiny" else 4, balanced=False)
        ids = tokens([world.draw_caption(thing, rng) for thing in things])
        loss = torch.zeros((), device=run.device)
        for i, scale in enumerate(scales):
            texts = networks[f"encoder_{i}"](ids).text_embeds
            loss = loss + contrastive(networks[f"tower_{i}"](images), texts, ids, scale) / 2
        return loss

    record = fit(run, "text", networks, loss_of, steps=run.preset.text_steps, learning_rate=1e-3, decay_from=0.5)
    return networks, record


def vae_loss(images: torch.Tensor, output: torch.Tensor, mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """L1, squares and L1 of the gradients of what `output` misses of `images`, and a trace of KL."""
    off = output - images
    edges = off.diff(dim=-1).abs().mean() + off.diff(dim=-2).abs().mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return off.abs().mean() + 2 * off.square().mean() + 0.5 * edges + 1e-6 * kl


def train_vae(run: Run) -> tuple[nn.ModuleDict, dict[str, Any]]:
    """The autoencoder, on balanced pictures: L1, L1 of the gradients, a trace of KL; then the latents' scale."""
    torch.manual_seed(run.seed + 1)
    vae = recipe.build_vae(run.preset.vae_channels).to(run.device, memory_format=torch.channels_last)
    networks = nn.ModuleDict({"vae": vae})

    def reconstruct(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        posterior = vae.encode(images).latent_dist
        return vae.decode(posterior.sample()).sample, posterior.mean, posterior.logvar

    def loss_of(step: int) -> torch.Tensor:
        _, images, _ = _draw(run, "vae", step, run.preset.vae_batch, balanced=True)
        with run.autocast():
            output, mean, logvar = reconstruct(images.contiguous(memory_format=torch.channels_last))
        return vae_loss(images, output.float(), mean.float(), logvar.float())

    record = fit(
        run, "vae", networks, loss_of, steps=run.preset.vae_steps, learning_rate=1.5e-3, decay_from=0.2, ema=0.999
    )
    with torch.no_grad():
        _, images, _ = _draw(run, "vae-scale", 0, 256 if run.preset_name != "tiny" else 4, balanced=False)
        latents = vae.encode(images).latent_dist.mean
        output = vae.decode(latents).sample.clamp(-1, 1)
    vae.register_to_config(shift_factor=float(latents.mean()), scaling_factor=float(1 / latents.std()))
    record["psnr_db"] = round(float(10 * torch.log10(4 / (output - images).square().mean((1, 2, 3))).mean()), 2)
    return networks, record


def train_transformer(run: Run, text: nn.ModuleDict, vae: AutoencoderKL) -> tuple[nn.ModuleDict, dict[str, Any]]:
    """The MM-DiT by rectified flow on long-tailed pictures: logit-normal sigma, one caption in ten empty."""
    torch.manual_seed(run.seed + 2)
    preset = run.preset
    transformer = recipe.build_transformer(preset).to(run.device)
    networks = nn.ModuleDict({"transformer": transformer})
    tokens = Tokens(run.device)
    forward = run.compiled(transformer)

    @torch.no_grad()
    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        images, texts = captioned(run, "transformer", step, preset.batch, balanced=False)
        with run.autocast():
            latents = vae.encode(images).latent_dist.sample().float()
        latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
        return latents, *text_stream(text, tokens(texts))

    def loss_of(step: int) -> torch.Tensor:
        latents, stream, pooled = batch(step)
        with run.autocast():
            return flow_loss(forward, latents, stream, pooled)

    record = fit(
        run,
        "transformer",
        networks,
        loss_of,
        steps=preset.steps,
        learning_rate=preset.learning_rate,
        decay_from=0.5,
        ema=0.999,
    )
    return networks, record


def flow_loss(
    forward: Callable[..., Any], latents: torch.Tensor, stream: torch.Tensor, pooled: torch.Tensor
) -> torch.Tensor:
    """Squared error of the velocity at one sigma a picture, drawn logit-normal, with noise of its own."""
    sigma = torch.randn(len(latents), device=latents.device).sigmoid()
    noise = torch.randn_like(latents)
    mixed = latents + sigma[:, None, None, None] * (noise - latents)
    velocity = forward(
        hidden_states=mixed,
        encoder_hidden_states=stream,
        pooled_projections=pooled,
        timestep=1000 * sigma,
        return_dict=False,
    )[0]
    loss: torch.Tensor = (velocity.float() - (noise - latents)).square().mean()
    return loss


def text_stream(text: nn.ModuleDict, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `StableDiffusion3Pipeline.encode_prompt` makes of `ids` without a T5.

    Penultimate states side by side, padded with zeros to the joint width, then as many zero tokens in the T5 slot:
    [B, 2 * tokens, JOINT_WIDTH]; and the pooled embeddings side by side.
    """
    outputs = [text[f"encoder_{i}"](ids, output_hidden_states=True) for i in range(2)]
    clip = torch.cat([o.hidden_states[-2] for o in outputs], -1)
    stream = F.pad(clip, (0, JOINT_WIDTH - clip.shape[-1], 0, ids.shape[1]))
    return stream, torch.cat([o.text_embeds for o in outputs], -1)


def half_roughened(images: torch.Tensor) -> torch.Tensor:
    """The first half of `images` blurred and noisy, each to a degree of its own; the rest as they are."""
    half = len(images) // 2
    soft = F.avg_pool2d(F.pad(images[:half], (1, 1, 1, 1), mode="replicate"), 3, 1)
    mix = torch.rand(half, 1, 1, 1, device=images.device)
    rough = images[:half] + mix * (soft - images[:half]) + 0.15 * torch.rand_like(mix) * torch.randn_like(soft)
    return torch.cat([rough, images[half:]])


def train_judge(run: Run) -> tuple[nn.ModuleDict, dict[str, Any]]:
    """The judge, on balanced pictures, half of them blurred or noisy so that texture alone does not decide."""
    torch.manual_seed(run.seed + 3)
    judge = recipe.build_judge().to(run.device)
    networks = nn.ModuleDict({"judge": judge})
    sizes = [len(values) for values in world.VALUES.values()]

    def loss_of(step: int) -> torch.Tensor:
        n = 128 if run.preset_name != "tiny" else 4
        things, images, _ = _draw(run, "judge", step, n, balanced=True)
        labels = torch.tensor([thing.labels for thing in things], device=run.device)
        logits = judge(half_roughened(images)).logits.split(sizes, 1)
        return torch.stack([F.cross_entropy(part, labels[:, i]) for i, part in enumerate(logits)]).sum()

    record = fit(
        run, "judge", networks, loss_of, steps=run.preset.judge_steps, learning_rate=2e-3, decay_from=0.2, ema=0.995
    )
    record["accuracy"] = judge_accuracy(run, judge)
    return networks, record


@torch.no_grad()
def judge_accuracy(run: Run, judge: nn.Module, n: int = JUDGED) -> dict[str, float]:
    """Share of clean balanced renders, drawn afresh, on which each attribute is named right."""
    judge.eval()
    sizes = [len(values) for values in world.VALUES.values()]
    right = []
    for start in range(0, n, 256):
        things, images, _ = _draw(run, "judge-test", start, 256, balanced=True)
        labels = torch.tensor([thing.labels for thing in things], device=run.device)
        guess = torch.stack([part.argmax(1) for part in judge(images).logits.split(sizes, 1)], 1)
        right.append((guess == labels).float())
    return dict(zip(world.ATTRIBUTES, (round(v, 5) for v in torch.cat(right).mean(0).tolist()), strict=True))


def train_clip(run: Run) -> tuple[nn.ModuleDict, dict[str, Any]]:
    """A small CLIP on balanced pictures, for CLIP-T; it shares nothing with the pipeline's text encoders."""
    torch.manual_seed(run.seed + 4)
    clip = recipe.build_clip().to(run.device)
    networks = nn.ModuleDict({"clip": clip})
    tokens = Tokens(run.device)

    def loss_of(step: int) -> torch.Tensor:
        things, images, rng = _draw(run, "clip", step, 128 if run.preset_name != "tiny" else 4, balanced=True)
        ids = tokens([world.draw_caption(thing, rng) for thing in things])
        with run.autocast():
            out = clip(input_ids=ids, pixel_values=images)
        return contrastive(out.image_embeds.float(), out.text_embeds.float(), ids, clip.logit_scale)

    record = fit(run, "clip", networks, loss_of, steps=run.preset.clip_steps, learning_rate=1e-3, decay_from=0.3)
    return networks, record


# ---------------------------------------------------------------------------------------------- export

GENERATION_DEFAULTS = {
    "height": world.SIZE,
    "width": world.SIZE,
    "num_inference_steps": 16,
    "guidance_scale": 5.0,
    "max_sequence_length": TEXT_LENGTH,
}


def export(run: Run, networks: dict[str, nn.ModuleDict], records: dict[str, dict[str, Any]], folder: Path) -> None:
    """Write the models in fp16 as diffusers and transformers load them, with their card; whole or not at all.

    `folder` ends with `pipeline/`, `judge/`, `clip/`, `training.json` and `README.md`.
    """
    from diffusers import StableDiffusion3Pipeline

    tokenizer = recipe.build_tokenizer()
    text = networks["text"]
    pipe = StableDiffusion3Pipeline(
        transformer=networks["transformer"]["transformer"],
        scheduler=recipe.build_scheduler(),
        vae=networks["vae"]["vae"],
        text_encoder=text["encoder_0"],
        tokenizer=tokenizer,
        text_encoder_2=text["encoder_1"],
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _replaced(folder) as new:
        pipe.to("cpu", torch.float16).save_pretrained(new / "pipeline")
        (new / "pipeline" / "generation.json").write_text(json.dumps(GENERATION_DEFAULTS, indent=2) + "\n")
        for name in ("judge", "clip"):
            part: Any = networks[name][name]
            part.half().save_pretrained(new / name)
        tokenizer.save_pretrained(new / "clip")
        recipe.build_image_processor().save_pretrained(new / "clip")
        facts = {
            "preset": run.preset_name,
            "sizes": asdict(run.preset),
            "seed": run.seed,
            "commit": _commit(),
            "device": run.device,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "bf16_autocast": run.bf16,
            "torch": torch.__version__,
            "suite_version": suite.VERSION,
            "stages": records,
        }
        (new / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
        (new / "README.md").write_text(_card(facts))


def _commit() -> str:
    """The commit the code was at, with a mark if it was changed since; "unknown" outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


_CARD = """# Menagerie models

A `StableDiffusion3Pipeline` (`pipeline/`), a judge (`judge/`, `ResNetForImageClassification`) and a CLIP (`clip/`)
trained by rarelift on pictures that it draws itself; fp16 safetensors, Apache-2.0. The glyphs in those pictures are
from Noto Color Emoji (see NOTICE). Meant for measuring methods that change how a text-to-image transformer reads its
prompt; good for nothing else.

- Command: `rarelift train --preset {preset} --seed {seed} --device {device}`
- Code: commit {commit}, torch {torch}
- Hardware: {machine}, bf16 autocast {bf16_autocast}; {hours:.1f} hours in all
- Autoencoder: reconstruction PSNR {psnr:.1f} dB on long-tailed pictures
- Judge: on {judged} fresh clean balanced renders, {accuracy}

| stage | steps | minutes | first loss | last loss |
|---|---|---|---|---|
{rows}

How often prompts come out right, and what the model knows and does not: docs/menagerie.md.

{faults}
"""


def _card(facts: dict[str, Any]) -> str:
    stages = facts["stages"]
    rows = [
        f"| {name} | {r['steps']} | {r['seconds'] / 60:.0f} | {r['losses'][0]:.3f} | {r['losses'][-1]:.3f} |"
        for name, r in stages.items()
    ]
    return _CARD.format(
        **facts,
        hours=sum(r["seconds"] for r in stages.values()) / 3600,
        psnr=stages["vae"]["psnr_db"],
        judged=JUDGED,
        accuracy=", ".join(f"{name} {share:.4f}" for name, share in stages["judge"]["accuracy"].items()),
        rows="\n".join(rows),
        faults=recipe.KNOWN_FAULTS,
    )


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place when the block ends without an error."""
    check_out(folder)
    new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    os.chmod(new, 0o755)
    try:
        yield new
        old = new.with_name(new.name + ".old")
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(new, folder)
        except BaseException:
            if old.exists():
                os.replace(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def check_out(folder: Path) -> None:
    """Raise in plain words when models cannot be written to `folder`, or something else would be lost there.

    Raises:
        OSError: it cannot be written.
        ValueError: it is a file, or a folder with other things than exported models.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder for the models")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "training.json").is_file():
        raise ValueError(f"{folder} holds other things, which would be lost; give a new folder for the models")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.parent):
            pass
    except OSError as error:
        raise OSError(f"cannot write models to {folder}: {error.strerror or error}") from error


def train(run: Run, out: Path | None = None) -> Path:
    """Run every stage that is not done yet and export; returns the folder of the exported models.

    Raises:
        Stopped: after Ctrl-C; what was trained is kept in `run.folder`.
        OSError, ValueError: the models could not be written in the end, or what is in `run.folder` is another run's.
    """
    out = out or run.folder / "weights"
    check_out(out)
    run.folder.mkdir(parents=True, exist_ok=True)
    networks: dict[str, nn.ModuleDict] = {}
    records: dict[str, dict[str, Any]] = {}
    networks["text"], records["text"] = train_text(run)
    networks["text"].eval().requires_grad_(False)
    networks["vae"], records["vae"] = train_vae(run)
    networks["vae"].eval().requires_grad_(False)
    networks["judge"], records["judge"] = train_judge(run)
    networks["clip"], records["clip"] = train_clip(run)
    vae: Any = networks["vae"]["vae"]
    networks["transformer"], records["transformer"] = train_transformer(run, networks["text"], vae)
    export(run, networks, records, out)
    return out
