"""How far could rare prompts get by training, where lifts get next to nowhere? The bundled transformer, trained on.

    python benchmarks/ceiling.py train runs/ceiling     with balanced and with long-tailed pictures; the same goes on
    python benchmarks/ceiling.py report runs/ceiling    guidance chosen on tuning prompts, the rest on reporting ones
    python benchmarks/ceiling.py table                  docs/beyond.md from the records alone, nothing is drawn

Balanced pictures show every colour, pattern, wearable and scene equally often with every animal: what no lift may use.
As many further steps on the long tail tell how much of a gain longer training alone brings. Text encoders and
autoencoder stay as they are. Each training and the drawing are resumable; all need the allocator settings of
docs/menagerie.md to be fast.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bars
from measure import RESULTS, Bench, Cell, Drawing, begun, clusters, pack, table, unpack, versions, write_section
from rarelift import pipelines
from rarelift.bench import stats
from rarelift.menagerie import PIPELINE, recipe, train
from rarelift.menagerie.suite import Suite

PAGE = Path(__file__).parents[1] / "docs" / "beyond.md"
FILE = RESULTS / "ceiling.jsonl"
SHIPPED, TRAINED = "shipped", ("balanced", "tailed")
MODELS = {SHIPPED: "shipped", "balanced": "trained on, balanced", "tailed": "trained on, long tail"}
SUITES: tuple[Suite, ...] = ("rare", "common")


# ---------------------------------------------------------------- training


def train_on(run: train.Run, balanced: bool, *, steps: int, batch: int, rate: float) -> dict[str, Any]:
    """Train the transformer of a Menagerie pipeline further, as it was trained, and write `pipeline/` into the run.

    Args:
        run: its stage is called "transformer".
        balanced: every value equally often with every animal, in place of the long tail.

    Returns the record of `train.fit`. Raises as that and `measure.begun` do.
    """
    begun(run.folder / "asked.json", {"batch": batch, "learning_rate": rate, "balanced": balanced})
    pipe: Any = pipelines.load(device="cpu").pipe
    vae, transformer = pipe.vae, pipe.transformer
    for part in (vae, pipe.text_encoder, pipe.text_encoder_2):
        part.eval().requires_grad_(False).to(run.device)
    transformer.requires_grad_(True).to(run.device)
    forward = run.compiled(transformer)

    def loss_of(step: int) -> Tensor:
        images, texts = train.captioned(run, "transformer", step, batch, balanced=balanced)
        with torch.no_grad(), run.autocast():
            latents = vae.encode(images).latent_dist.sample().float()
        latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
        with torch.no_grad():  # by the pipeline: the shipped tokenizer numbers words in its own way
            stream, _, pooled, _ = pipe.encode_prompt(
                texts,
                None,
                None,
                device=run.device,
                do_classifier_free_guidance=False,
                max_sequence_length=recipe.TEXT_LENGTH,
            )
        with run.autocast():
            return train.flow_loss(forward, latents, stream, pooled)

    networks = nn.ModuleDict({"transformer": transformer})
    record = train.fit(run, "transformer", networks, loss_of, steps=steps, learning_rate=rate, decay_from=0.3, ema=0.99)
    pipe.to("cpu", torch.float16).save_pretrained(run.folder / "pipeline")
    shutil.copy(PIPELINE / pipelines.GENERATION, run.folder / "pipeline")
    facts = {**record, "batch": batch, "learning_rate": rate, "balanced": balanced, "versions": versions()}
    (run.folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    return record


# ---------------------------------------------------------------- drawing


def reporting(suite: Suite, guidance: float) -> Cell:
    return Cell(suite, "report", 512, 2, guidance, bars.STEPS)


def drawn(name: str, folder: Path) -> list[dict[str, Any]]:
    """Draw what is not there yet: tuning prompts at every guidance, reporting prompts at the best. The records of it.

    Raises:
        FileNotFoundError: the model was not trained to its end.
    """
    made = None
    if name == SHIPPED:
        bench = Bench(folder / f"{name}.jsonl")
        for known in ("bars", "report"):
            bench.done.update(Bench(RESULTS / f"{known}.jsonl").done)
    else:
        path = folder / name / "training.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there; run `train {folder}` to its end first")
        made = json.loads(path.read_text())
        bench = Bench(folder / f"{name}.jsonl", Drawing(str(folder / name / "pipeline")))
    tune = [bars.tuning(suite, g) for g in bars.GUIDANCE for suite in ("rare", "common")]
    bench.run(tune)
    cells = [*tune, *(reporting(suite, bars.best_guidance(bench)) for suite in SUITES)]
    bench.run(cells)
    head = {"model": name, "weights": bench.weights, "training": made, "versions": versions()}
    return [head, *({"model": name, "key": cell.key, "right": pack(bench.right(cell))} for cell in cells)]


# ---------------------------------------------------------------- the table


class Records(Bench):
    """The cells of one model, from the records alone."""

    def __init__(self, records: Sequence[dict[str, Any]], name: str) -> None:
        mine = [record for record in records if record["model"] == name]
        self.file, self.training = FILE, next(r["training"] for r in mine if "training" in r)
        self.done = {record["key"]: unpack(record["right"]) for record in mine if "key" in record}


def render(records: Sequence[dict[str, Any]]) -> str:
    """Each model at its own best guidance, against the first at its."""
    models = {name: Records(records, name) for name in MODELS if any(r["model"] == name for r in records)}
    base = models[SHIPPED]
    rows = []
    for name, bench in models.items():
        best = bars.best_guidance(bench)
        rows.append([MODELS[name], f"{best:g}", *(told(bench, base, suite) for suite in SUITES)])
    trained = [
        f"{MODELS[name]}: {bench.training['steps']} steps of {bench.training['batch']} pictures, "
        f"{bench.training['seconds'] / 60:.0f} minutes on a CPU that was shared"
        for name, bench in models.items()
        if bench.training
    ]
    return "\n\n".join(
        [
            "Pictures with every attribute right, 512 reporting prompts a suite x 2 seeds, at "
            "the guidance_scale that is best for each model on tuning prompts; in brackets the difference to the "
            f"shipped model from the same noise, 95% interval by thing. {'. '.join(trained)}.",
            table(["model", "guidance_scale", *SUITES], rows),
        ]
    )


def told(bench: Bench, base: Bench, suite: Suite) -> str:
    cell, before = (reporting(suite, bars.best_guidance(one)) for one in (bench, base))
    right, known = (one.right(c).all(1).astype(float) for one, c in ((bench, cell), (base, before)))
    if bench is base:
        return f"{stats.mean(right, clusters(cell))}"
    return f"{right.mean():.3f} ({stats.difference(right, known, clusters(cell)):+.3f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(dest="stage", required=True)
    training = stages.add_parser("train", help="train the models on and write their pipelines")
    training.add_argument("folder", type=Path, help="of the checkpoints and the pipelines")
    training.add_argument("--only", choices=TRAINED, help="one of the two")
    training.add_argument("--steps", type=int, default=600)
    training.add_argument("--batch", type=int, default=64)
    training.add_argument("--rate", type=float, default=5e-4, help="learning rate")
    training.add_argument("--seed", type=int, default=1, help="another than that of the shipped model")
    training.add_argument("--device", default="cpu")
    training.add_argument("--no-compile", action="store_true", help="slower; needs no C++ compiler")
    drawing = stages.add_parser("report", help="draw, judge, and write the page")
    drawing.add_argument("folder", type=Path, help="that `train` wrote")
    stages.add_parser("table", help="write the page from the records; nothing is drawn")
    args = parser.parse_args(arguments)
    if args.stage == "train":
        for name in [args.only] if args.only else TRAINED:
            run = train.Run(args.folder / name, "cpu", args.seed, args.device, not args.no_compile)
            try:
                train_on(run, name == "balanced", steps=args.steps, batch=args.batch, rate=args.rate)
            except (train.Stopped, ValueError) as stopped:
                sys.exit(str(stopped))
        return
    if args.stage == "report":
        records = [record for name in MODELS for record in drawn(name, args.folder)]
        FILE.write_text("".join(json.dumps(record) + "\n" for record in records))
    text = render([json.loads(line) for line in FILE.read_text().splitlines()])
    print(text)
    write_section(PAGE, "ceiling", text)


if __name__ == "__main__":
    main()
