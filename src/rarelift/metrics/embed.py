"""CLIP embeddings of pictures and texts from a local checkpoint: what several metrics are made of."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any, Literal

import torch

from . import _checks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL import Image


class Clip:
    """A CLIP (Radford et al. 2021) that turns pictures and texts into unit vectors.

    Args:
        path: a directory as `save_pretrained` writes it; for open_clip, one with `open_clip_config.json`, or a file of
            weights.
        backend: "transformers", or "open_clip" if that package is installed.
        processor: a directory with tokenizer and image processor, where they are not beside the weights.
        architecture: open_clip's name for what a file of weights is of, "ViT-H-14" for HPS_v2.1_compressed.pt.
        device: where it runs.
        batch_size: pictures or texts at a time; does not change the numbers beyond rounding.

    Raises:
        ValueError: no such directory or file, no CLIP in it, weights are missing, a file without architecture or the
            other way round, or an unknown backend or architecture.
        ImportError: open_clip is missing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        backend: Literal["transformers", "open_clip"] = "transformers",
        *,
        processor: str | os.PathLike[str] | None = None,
        architecture: str | None = None,
        device: str = "cpu",
        batch_size: int = 64,
    ) -> None:
        if backend not in ("transformers", "open_clip"):
            raise ValueError(f"no backend {backend!r}; there are: transformers, open_clip")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; at least 1")
        if architecture is not None and backend != "open_clip":
            raise ValueError(f"architecture {architecture!r} is for backend='open_clip'; here config.json says it")
        words = None if processor is None else _checks.checkpoint(os.fspath(processor))
        if backend == "open_clip":
            self.model, self._see, self._read = _open_clip(os.fspath(path), words, device, architecture)
        else:
            weights = _checks.checkpoint(os.fspath(path))
            self.model, self._see, self._read = _transformers(weights, words or weights, device)
        self.batch_size = batch_size

    @property
    def scale(self) -> float:
        """By which cosines become logits: exp(logit_scale), 100 in most CLIPs."""
        return float(self.model.logit_scale.detach().float().exp())

    def images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Unit vectors of N pictures, [N, D] float32 on the CPU."""
        return self._embed(self._see, _checks.pictures(images), "embeddings of images")

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors of N texts, [N, D] float32 on the CPU. A text that is too long is cut, with a warning."""
        return self._embed(self._read, _checks.texts(texts), "embeddings of texts")

    def cosines(self, images: Sequence[Image.Image], texts: Sequence[str]) -> torch.Tensor:
        """Cosine of each picture and its text, [N], in -1..1."""
        pictures, words = _checks.pictures(images), _checks.texts(texts)
        _checks.same_length(pictures, words, "texts")
        seen, read = self._embed(self._see, pictures, "embeddings of images"), self.texts(words)
        return (seen * read).sum(-1)

    @torch.no_grad()
    def _embed(self, one: Callable[[list[Any]], torch.Tensor], items: list[Any], name: str) -> torch.Tensor:
        parts = [one(items[i : i + self.batch_size]).float().cpu() for i in range(0, len(items), self.batch_size)]
        return torch.nn.functional.normalize(_checks.finite(torch.cat(parts), name), dim=-1)


Loaded = tuple[Any, "Callable[[list[Any]], torch.Tensor]", "Callable[[list[Any]], torch.Tensor]"]


def _transformers(path: str, words: str, device: str) -> Loaded:
    import transformers

    kind = transformers.AutoConfig.from_pretrained(path, local_files_only=True).model_type
    if kind != "clip":
        raise ValueError(f"{path!r} holds a model of type {kind!r}, not 'clip'")
    model, info = transformers.CLIPModel.from_pretrained(path, local_files_only=True, output_loading_info=True)
    _checks.complete(path, info)
    model = model.to(device).float().eval()  # a checkpoint in float16 is slow on a CPU, and rounds the fourth digit
    tokenizer = transformers.AutoTokenizer.from_pretrained(words, local_files_only=True)
    # by PIL also where torchvision is installed: it resizes a little differently, and the score would move with it
    processor_class = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    processor = processor_class.from_pretrained(words, local_files_only=True)
    longest = model.config.text_config.max_position_embeddings

    def see(images: list[Image.Image]) -> torch.Tensor:
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        return _pooled(model.get_image_features(pixel_values=pixels.to(device, model.dtype)))

    def read(texts: list[str]) -> torch.Tensor:
        cut = sum(len(ids) > longest for ids in tokenizer(texts, truncation=False, verbose=False)["input_ids"])
        if cut:
            warnings.warn(
                f"{cut} of {len(texts)} texts are longer than {longest} tokens; CLIP reads no further", stacklevel=5
            )
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(device)
        return _pooled(model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]))

    return model, see, read


def _pooled(output: Any) -> torch.Tensor:
    """transformers 4 gives the projected vectors, transformers 5 an output that holds them."""
    vectors: torch.Tensor = output if isinstance(output, torch.Tensor) else output.pooler_output
    return vectors


def _open_clip(path: str, words: str | None, device: str, architecture: str | None) -> Loaded:
    if os.path.isfile(path) != (architecture is not None):
        raise ValueError(f"architecture is {architecture!r} and path {path!r}; a file of weights needs one, 'ViT-H-14'")
    if architecture is None:
        _checks.checkpoint(path)
    open_clip = _checks.need("open_clip", "open_clip_torch")
    if architecture is not None and architecture not in open_clip.list_models():
        raise ValueError(f"open_clip knows no architecture {architecture!r}; open_clip.list_models() has the names")
    name = architecture or f"local-dir:{path}"
    model, preprocess = open_clip.create_model_from_pretrained(
        name, pretrained=path if architecture else None, device=device
    )
    model = model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{words}" if words else name)

    def see(images: list[Image.Image]) -> torch.Tensor:
        vectors: torch.Tensor = model.encode_image(torch.stack([preprocess(image) for image in images]).to(device))
        return vectors

    def read(texts: list[str]) -> torch.Tensor:
        vectors: torch.Tensor = model.encode_text(tokenizer(texts).to(device))
        return vectors

    return model, see, read
