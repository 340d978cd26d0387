"""The command line: parses, calls, prints. What it does is in the modules it calls."""

from __future__ import annotations

import logging
import os
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from . import __version__

if TYPE_CHECKING:
    from .rarity import Score

app = typer.Typer(
    help="Make multimodal diffusion transformers draw what rare prompts ask for. No training, no second model.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
_err = Console(stderr=True, highlight=False)

# glibc gives memory back after each step and faults it in again: up to 20 times slower on a CPU
_ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "500000000",
}


_INTERRUPTED = 130  # the exit code of a shell's Ctrl-C
# typer carries its own click since 0.26 and exports the error's subclass only
_UsageError: Any = typer.BadParameter.__base__


class Branch(str, Enum):
    both = "both"
    cond = "cond"
    uncond = "uncond"


ModelOption = Annotated[str, typer.Option(help="`menagerie`, a folder in diffusers' format, or a hub id.")]
AlphaOption = Annotated[float, typer.Option(help="How far text tokens are spread about their mean; 1 does nothing.")]
StepsOption = Annotated[int | None, typer.Option(min=1, help="Denoising steps; the model's default if not given.")]
GuidanceOption = Annotated[float | None, typer.Option(help="guidance_scale; the model's default if not given.")]


@app.command(
    epilog="""**Examples**

`rarelift generate "a purple striped lion wearing a crown at night"`

`rarelift generate "a purple striped lion wearing a crown at night" --compare --seeds 6`

`rarelift generate "a hairy frog" --model ./my-sd3 --alpha 1.3 --out frog.png`""",
)
def generate(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What to draw.", show_default=False)],
    model: ModelOption = "menagerie",
    profile: Annotated[
        str | None,
        typer.Option(help="Tuned settings: a .json file, a packaged name, or auto. Options beside it win."),
    ] = None,
    alpha: AlphaOption = 1.5,
    compare: Annotated[bool, typer.Option("--compare", help="A grid: untouched above, lifted below.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the first picture.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="How many pictures, with seeds counting up.")] = 1,
    out: Annotated[Path, typer.Option(help="A .png file, or a folder.")] = Path("pictures"),
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    tokens: Annotated[
        str, typer.Option(help="all, valid, content, or words of the prompt, comma separated.")
    ] = "valid",
    blocks: Annotated[str | None, typer.Option(help="Blocks to lift, e.g. 0-3,7; all if not given.")] = None,
    start: Annotated[float, typer.Option(help="Share of the steps after which lifting starts.")] = 0.0,
    stop: Annotated[float, typer.Option(help="Share of the steps after which it stops.")] = 1.0,
    branch: Annotated[Branch, typer.Option(help="Half of classifier-free guidance to lift.")] = Branch.both,
    carry: Annotated[float, typer.Option(help="Share of the spread that goes on to the next block, 0 to 1.")] = 0.0,
    explain: Annotated[bool, typer.Option("--explain", help="Say first how rare each word is to the model.")] = False,
) -> None:
    """Draw PROMPT, lifted, with its settings inside the PNG."""
    from .generating import generate as draw

    chosen = (
        tokens if tokens in ("all", "valid", "content") else tuple(w.strip() for w in tokens.split(",") if w.strip())
    )
    settings = {
        "alpha": alpha,
        "carry": carry,
        "tokens": chosen,
        "blocks": blocks,
        "start": start,
        "stop": stop,
        "branch": branch.value,
    }
    given = {name: value for name, value in settings.items() if _was_given(context, name)}
    call = _given(num_inference_steps=steps, guidance_scale=guidance)
    many, say = range(seed, seed + seeds), _explain if explain else None
    for path in draw(prompt, model, given, many, out, profile=profile, compare=compare, explain=say, **call):
        print(path)


def _explain(scores: list[Score]) -> None:
    from .rarity import RELIABILITY

    for score in scores:
        print(f"{score.score:8.4f}  {score.word}")
    print(RELIABILITY)


@app.command(epilog="**Example**\n\n`rarelift demo --out demo.png`")
def demo(
    out: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("demo.png"),
    alpha: AlphaOption = 1.5,
    prompts: Annotated[int, typer.Option(min=8, help="How many rare prompts to draw in each row.")] = 32,
    guidance: Annotated[list[float] | None, typer.Option(help="guidance_scale; give it several times.")] = None,
) -> None:
    """Show the effect on the bundled model: a picture, and how often rare prompts come out right."""
    from rich.table import Table

    from .generating import demo as run
    from .settings import Spread

    rows = run(Spread(alpha=alpha), out, n=prompts, guidances=guidance or [1.0, 5.0])
    table = Table(title=f"Menagerie: {prompts} rare prompts, one seed each, same noise", title_justify="left")
    for heading in ("guidance_scale", "", "every attribute right", "95% interval"):
        table.add_column(heading)
    for row in rows:
        sign = "+" if row.name == "difference" else ""
        span = f"[{row.rate.low:{sign}.3f}, {row.rate.high:{sign}.3f}]"
        table.add_row(f"{row.guidance:g}", row.name, f"{row.rate.value:{sign}.3f}", span, end_section=bool(sign))
    Console(highlight=False).print(table)
    print(f"{out}: the first eight; green frame: every attribute right, red: not")
    print(f"{prompts} prompts show what it looks like and prove nothing; the measurement is in docs/defaults.md")


@app.command(
    epilog="""**Examples**

`rarelift bench runs/first --suite menagerie-rare --prompts 64 --guidance 1 --guidance 3`

`rarelift bench runs/flux --model ./flux --suite rare --method untouched --method lift:alpha=1.3 --limit 4`

`rarelift bench runs/mine --model ./my-sd3 --suite ./RareBench --format rarebench`

The same command again goes on where it was stopped. `rarelift report RUN` prints what it says."""
)
def bench(
    run: Annotated[Path | None, typer.Argument(help="Folder of the run; one found there goes on.")] = None,
    suite: Annotated[
        str, typer.Option(help="A suite by name (--list), or a file or folder of prompts.")
    ] = "menagerie-rare",
    format: Annotated[str | None, typer.Option(help="Of the file or folder, where it cannot be told.")] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Of a Menagerie suite: report, or tune to choose a setting.", show_default="report"),
    ] = None,
    prompts: Annotated[int | None, typer.Option(min=1, help="Only the first so many of the suite.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="untouched, lift:NAME=VALUE,..., lift:profile=FILE.json or a rival (--list); several times. Default: "
            "untouched and lift."
        ),
    ] = None,
    guidance: Annotated[list[float] | None, typer.Option(help="guidance_scale; several times makes a sweep.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Pictures of each prompt.")] = 1,
    model: ModelOption = "menagerie",
    metric: Annotated[
        list[str] | None,
        typer.Option(help="attributes, clip_t[=PATH], preference=PATH, vqa=PATH, judge=URL#MODEL; several times."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures at once: 16 bundled, else 1.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; else float32 on a CPU, bfloat16 on a GPU.")
    ] = None,
    steps: StepsOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after about so many pictures, for a try.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Draw in so many processes, by Ray; they share cores and GPUs.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster for the workers; else this machine.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List suites, formats of files, methods and metrics.")] = False,
) -> None:
    """Measure methods on the prompts of a suite, with the same noise for all, into the folder RUN."""
    if list_:
        from .bench.session import listed

        print(listed())
        return
    if run is None:
        raise ValueError("give a folder for the run, such as runs/first; --list shows what there is")
    from .bench.session import bench as measure
    from .bench.session import planned
    from .bench.summary import markdown, read

    plan = planned(
        suite,
        suite_format=format,
        split=split,
        first=prompts,
        methods=method or ("untouched", "lift"),
        guidances=guidance or (),
        seeds=seeds,
        model=model,
        batch_size=batch_size,
        metrics=metric or (),
        dtype=dtype,
        **_given(num_inference_steps=steps),
    )
    made, held = measure(plan, run, limit=limit, workers=workers, address=address)
    print(f"{run}: {made} pictures made, {held} of {plan.total} there")
    if held and (rows := read(run).rows):
        print(markdown(rows), end="")


@app.command(
    epilog="""**Examples**

`rarelift report runs/first --html first.html`

`rarelift report runs/rare runs/common --html both.html --csv numbers.csv` also rare success against common success

`rarelift report runs/first --html losses.html --worst`

`rarelift report paper runs/rare runs/common --markdown paper.md` the paper's three tables, and figures beside them"""
)
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="[paper] RUN...", help="Folders of runs; `paper` first for its tables.", show_default=False
        ),
    ],
    html: Annotated[Path | None, typer.Option(help="Write a page with tables, plots and pictures.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the numbers, unrounded, to this file.")] = None,
    worst: Annotated[bool, typer.Option("--worst", help="The page shows the worst losses first.")] = False,
    real: Annotated[
        Path | None, typer.Option(help="For `paper`: folder of real pictures of the common prompts, for FID or KID.")
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="For `paper`: clip=FOLDER or inception=FILE. Default: the bundled CLIP.")
    ] = None,
) -> None:
    """Print what each RUN says: every method at every guidance, with its paired difference to untouched."""
    from .bench import page, summary
    from .bench.runs import write
    from .pictures import check_writable

    if str(runs[0]) == "paper":
        if html or csv or worst:
            raise ValueError("`report paper` writes Markdown and figures; leave out --html, --csv and --worst")
        _report_paper(runs[1:], markdown, real, features)
        return
    if real or features:
        raise ValueError("--real and --features are for `rarelift report paper RUN...`")
    if worst and html is None:
        raise ValueError("--worst is about the pictures of the page; give --html FILE too")
    for out in filter(None, (html, markdown, csv)):
        check_writable(out)
    records = [summary.read(run) for run in runs]
    tables = [(str(record.folder), record.rows) for record in records]
    if html is None and not any(rows for _, rows in tables):
        raise ValueError(summary.nothing(runs[0]))
    titles = [f"## {run}\n\n" if len(runs) > 1 else "" for run in runs]
    shown = [title + summary.markdown(rows) for title, (_, rows) in zip(titles, tables, strict=True) if rows]
    text = "\n".join(shown)
    print(text, end="")
    for path, content in ((csv, summary.as_csv(tables)), (markdown, text)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, content)
            print(path)
    if html is not None:
        page.build(records, html, worst=worst)
        print(html)


@app.command(
    epilog="""**Examples**

`rarelift tune` the bundled model, with 2000 pictures

`rarelift tune runs/sd3 --model ./my-sd3 --budget 4000 --metric vqa=./qwen-vl --common ./common.txt`

`rarelift tune runs/few --budget 600 --method lift:alpha=1.2 --method lift:alpha=1.5,tokens=content`

The same command again goes on where it was stopped. `rarelift generate --profile RUN/profile.json` uses what came of
it."""
)
def tune(
    run: Annotated[Path, typer.Argument(help="Folder of the tuning; one found there goes on.")] = Path("runs/tune"),
    model: ModelOption = "menagerie",
    budget: Annotated[int, typer.Option(min=1, help="Pictures in all, untouched and common ones among them.")] = 2000,
    suite: Annotated[
        str | None,
        typer.Option(help="Rare prompts: a suite, file or folder.", show_default="menagerie-rare, or rare"),
    ] = None,
    common: Annotated[
        str | None,
        typer.Option(help="Common prompts, which must not suffer.", show_default="menagerie-common, or none"),
    ] = None,
    format: Annotated[str | None, typer.Option(help="Of the file or folder, where it cannot be told.")] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="What counts, as `rarelift bench` takes it.", show_default="attributes, for Menagerie"),
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="lift:NAME=VALUE,... to race; several times. Default: samples.")
    ] = None,
    guidance: Annotated[
        list[float] | None,
        typer.Option(help="guidance_scale; of several, the best for the untouched model is found first."),
    ] = None,
    margin: Annotated[float, typer.Option(help="Share of the common score that may be lost.")] = 0.02,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures at once: 16 bundled, else 1.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; else float32 on a CPU, bfloat16 on a GPU.")
    ] = None,
    steps: StepsOption = None,
) -> None:
    """Find settings for MODEL by drawing with it, test them on prompts of their own, and write a profile."""
    from .bench import tune as tuning

    plan = tuning.planned(
        suite,
        common=common,
        suite_format=format,
        metric=metric,
        budget=budget,
        guidances=guidance or (),
        methods=method or (),
        model=model,
        margin=margin,
        batch_size=batch_size,
        dtype=dtype,
        **_given(num_inference_steps=steps),
    )
    found = tuning.tune(plan, run)
    print(tuning.told(found), end="")
    print(found.path)


def _report_paper(runs: list[Path], markdown: Path | None, real: Path | None, features: str | None) -> None:
    from .bench import paper
    from .bench.runs import write
    from .pictures import check_writable

    if markdown is not None:
        check_writable(markdown)
    measured = paper.read(runs)
    text = paper.report(measured, paper.reference(measured, real, features))
    print(text, end="")
    if markdown is not None:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        for name, svg in paper.figures(measured).items():
            figure = markdown.with_name(f"{markdown.stem}-{name}.svg")
            write(figure, svg)
            text += f"\n![{name}]({figure.name})\n"
            print(figure)
        write(markdown, text)
        print(markdown)


@app.command(epilog="**Examples**\n\n`rarelift inspect`\n\n`rarelift inspect ./my-sd3`")
def inspect(model: Annotated[str, typer.Argument(help="`menagerie`, a folder, or a hub id.")] = "menagerie") -> None:
    """Print which blocks of MODEL would be lifted, which stream they read, and what is left out and why."""
    from .attach import inspect as look
    from .pipelines import load

    print(look(load(model).pipe))


@app.command(
    epilog="""**Examples**

`rarelift train --run runs/cpu --preset cpu` two CPU cores, under two hours; Ctrl-C and the same command goes on

`rarelift train --run runs/gpu --preset gpu --device cuda`"""
)
def train(
    run: Annotated[Path, typer.Option(help="Folder of the checkpoints; a run found there is continued.")] = Path(
        "runs/cpu"
    ),
    preset: Annotated[str, typer.Option(help="cpu, gpu or tiny.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Where the models go; RUN/weights if not given.")] = None,
    seed: Annotated[int, typer.Option(help="Fixes data, weights and noise.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    compile: Annotated[bool, typer.Option("--compile/--no-compile", help="Compile the networks first.")] = True,
) -> None:
    """Train the Menagerie models from nothing but the drawn world."""
    from .menagerie.train import Run
    from .menagerie.train import train as fit

    print(fit(Run(run, preset, seed, device, compile), out))


def _was_given(context: typer.Context, option: str) -> bool:
    """Whether an option stands on the command line, even if with its default."""
    source = context.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


def _given(**options: float | None) -> dict[str, Any]:
    """The options that were given: the rest is the model's business."""
    return {name: value for name, value in options.items() if value is not None}


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


def _with_allocator() -> None:
    """Start again with the allocator settings, unless they are there already or do not apply."""
    if sys.platform != "linux" or any(key in os.environ for key in _ALLOCATOR):
        return
    # not -m, which would import what lies in the current folder
    code = "import sys; sys.path[:] = filter(None, sys.path); from rarelift.cli import main; main()"
    os.execve(sys.executable, [sys.executable, "-c", code, *sys.argv[1:]], {**os.environ, **_ALLOCATOR})


def main() -> None:
    """Entry point: one clear line and a non-zero exit for every error that a user can make."""
    _with_allocator()
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # their notes are for programmers
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    for name in ("torchao", "torch.utils._pytree"):  # diffusers imports it where it is installed
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        if app(prog_name="rarelift", standalone_mode=False) == _INTERRUPTED:  # typer swallows Ctrl-C, in newer versions
            raise typer.Abort
    except typer.Abort:
        _fail("interrupted; nothing half-written is left", _INTERRUPTED)
    except _UsageError as error:
        if not error.format_message():  # the help was asked for by giving nothing, and is printed
            sys.exit(2)
        _fail(error.format_message(), 2)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        _fail(str(error), 1)
    except RuntimeError as error:  # out of memory, a full disk, a compiler that fails
        if os.environ.get("RARELIFT_TRACEBACK"):
            raise
        _fail(f"{next(iter(str(error).splitlines()), type(error).__name__)} (RARELIFT_TRACEBACK=1 shows where)", 1)
    except Exception as error:
        if type(error).__name__ != "Stopped":  # its module is heavy and only `train` has imported it
            raise
        _fail(str(error), _INTERRUPTED)


def _fail(message: str, code: int) -> None:
    _err.print(f"[red]error:[/red] {escape(message)}", soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
