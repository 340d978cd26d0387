"""Load a pipeline, bundled or any diffusers one, and call it in one shape: prompts and seeds in, pictures out."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .menagerie import PIPELINE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from diffusers import DiffusionPipeline
    from PIL import Image

BUNDLED = "menagerie"
GENERATION = "generation.json"  # call defaults of a model, beside its model_index.json
_VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")
_NOT_NETWORKS = ("Tokenizer", "TokenizerFast", "Scheduler", "Processor", "ProcessorFast", "FeatureExtractor")
_WEIGHTS = ("*.safetensors", "*.bin")


class ModelError(ValueError):
    """A model that is not there, not whole, or not a pipeline."""


@dataclass(frozen=True)
class Model:
    """A pipeline and how it is called by default.

    `defaults` are keyword arguments of the pipeline's call; for the bundled model they come from its
    `generation.json` (steps, guidance, the length of the empty T5 slot).
    """

    name: str
    pipe: DiffusionPipeline
    defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def bundled(self) -> bool:
        return self.name == BUNDLED


def load(model: str = BUNDLED, *, dtype: torch.dtype | None = None, device: str | None = None) -> Model:
    """Load `menagerie`, a local folder in diffusers' format, or a hub id.

    Args:
        model: the name, path or id.
        dtype: weights and arithmetic; float32 by default on a CPU, bfloat16 on a GPU.
        device: torch device; a GPU when there is one.

    Raises:
        ModelError: nothing there, or a file of it is missing or damaged; the message names it.
    """
    import torch
    from diffusers import DiffusionPipeline

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.float32 if device == "cpu" else torch.bfloat16)
    folder = PIPELINE if model == BUNDLED else Path(model).expanduser()
    absent: dict[str, None] = {}
    if folder.is_dir():
        absent = _check_folder(folder)
        source = str(folder)
    elif model == BUNDLED:
        raise ModelError(f"the bundled model is not at {folder}; reinstall rarelift or run `rarelift train`")
    elif folder.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise ModelError(
            f"no model folder {model!r}; give {BUNDLED!r}, a folder that holds model_index.json, or a hub id"
        )
    else:
        source = model
    try:
        pipe = DiffusionPipeline.from_pretrained(source, dtype=dtype, **absent)
    except (Exception, SystemExit) as error:  # each loader of diffusers and transformers raises its own kind
        where = "" if folder.is_dir() else "there is no such folder here, and as a hub id: "
        raise ModelError(f"cannot load {model!r}: {where}{first_line(error)}") from error
    pipe.set_progress_bar_config(disable=True)
    return Model(model, pipe.to(device), _defaults(folder))


def _check_folder(folder: Path) -> dict[str, None]:
    """Name what is missing or cut short before the loaders do so in their own words.

    Returns the parts that the pipeline was saved without (an SD3 without T5): diffusers wants these passed as None.
    """
    from safetensors import SafetensorError, safe_open

    index = folder / "model_index.json"
    if not index.is_file():
        below = next((path.parent for path in folder.glob("*/model_index.json")), None)
        hint = f"; {below} has one" if below else ""
        raise ModelError(f"{folder} has no model_index.json, so it is not a diffusers pipeline{hint}")
    # a part is a (library, class) pair; other entries are settings of the pipeline
    parts = {k: v for k, v in _read_json(index).items() if isinstance(v, list) and len(v) == 2}
    absent = {part: None for part, (library, _) in parts.items() if library is None}
    for part, (_, kind) in parts.items():
        if part not in absent and not (folder / part).is_dir():
            raise ModelError(f"{folder} lacks the folder {part!r} that its model_index.json names")
        # transformers makes a tokenizer without any word of it, and says nothing
        vocabularies = [folder / part / name for name in _VOCABULARIES]
        if str(kind).startswith(("CLIPTokenizer", "T5Tokenizer")) and not any(path.is_file() for path in vocabularies):
            raise ModelError(f"{folder / part} holds no vocabulary, which is one of {', '.join(_VOCABULARIES)}")
        if part not in absent and "Tokenizer" in str(kind):
            _need(folder / part, "tokenizer_config.json")  # without it no length is known, and any is taken
        if part not in absent and not str(kind).endswith(_NOT_NETWORKS):
            _need(folder / part, "config.json")
            _need(folder / part, *_WEIGHTS)
    for path in folder.glob("*/*.json"):
        content = _read_json(path)
        if path.name == "tokenizer.json" and "model" not in content:
            raise ModelError(f"{path} cannot be read: it holds no vocabulary")
    for path in folder.glob("*/*.safetensors"):
        try:
            with safe_open(path, "pt"):  # reads the header and compares it with the length of the file
                pass
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} cannot be read: {first_line(error)}") from error
    return absent


def _need(folder: Path, *patterns: str) -> None:
    if not any(path for pattern in patterns for path in folder.glob(pattern)):
        raise ModelError(f"{folder} lacks {' or '.join(patterns)}; copy the model again, whole")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} cannot be read: it holds a {type(content).__name__}, not settings by name")
    return content


def _defaults(folder: Path) -> dict[str, Any]:
    path = folder / GENERATION
    return _read_json(path) if path.is_file() else {}


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def text_to_image(
    model: Model,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    batch_size: int = 16,
    on_batch: Callable[[int], object] | None = None,
    **call: Any,
) -> list[Image.Image]:
    """One picture per (prompt, seed) pair; a pair gives the same noise in whatever batch it stands.

    Args:
        prompts, seeds: N of each.
        batch_size: prompts per pipeline call.
        on_batch: called with the number of pictures each call made.
        call: arguments of the pipeline, over the model's defaults.

    Raises:
        ValueError: lengths that differ, an empty prompt, a batch size below 1, or a number that is not finite.
        FloatingPointError: a picture came out as NaN.
    """
    import torch

    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if any(not prompt.strip() for prompt in prompts):
        raise ValueError("the prompt is empty; say what to draw")
    for name, value in call.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, not {value}")
    images: list[Image.Image] = []
    for i in range(0, len(prompts), batch_size):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[i : i + batch_size]]
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "invalid value encountered in cast", RuntimeWarning)
            try:
                made = model.pipe(
                    prompt=list(prompts[i : i + batch_size]), generator=generators, **{**model.defaults, **call}
                )
            except RuntimeWarning:  # diffusers would make it a black picture
                raise FloatingPointError(
                    "the picture came out as NaN: bring alpha nearer to 1, leave carry off, or lower guidance_scale"
                ) from None
        images += made.images
        if on_batch:
            on_batch(len(made.images))
    return images
