"""The way into a pipeline that the rivals share which draw some steps with another prompt than the one asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from .access import Forward, around
from .prompted import Encode, Steps, counting, encoding, pooled_at

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

Whose = Callable[[int, int], list[int]]
"""A step and how many there are, to whose turn it is for each prompt: 0 its own, k the k-th of its others."""


@contextmanager
def taking_turns(pipe: DiffusionPipeline, rival: str, others: Sequence[Sequence[str]], whose: Whose) -> Iterator[None]:
    """Draw each step with the prompt itself or with one of its others, token and pooled embeddings both.

    The unconditional half stays as it is.

    Args:
        others: further texts for each prompt of the call, none for one that stays alone.

    Raises:
        UnsupportedPipelineError: as `prompted.pooled_at`.
        ValueError: the call has no words, or other prompts than `others` is for.
        RuntimeError: on leaving, the transformer was never called with the prompts.
    """
    pooled = pooled_at(pipe, rival)
    with ExitStack() as stack:
        turns = _Turns(rival, stack.enter_context(counting(pipe)), pooled, others, whose)
        stack.enter_context(encoding(pipe, turns.encode))
        stack.enter_context(around(pipe.transformer, turns.transform))
        yield
    if not turns.seen:
        raise RuntimeError(f"{rival}: the transformer was never called with the prompts, so nothing was done")


class _Turns:
    """One call of a pipeline under way."""

    def __init__(self, rival: str, steps: Steps, pooled: int, others: Sequence[Sequence[str]], whose: Whose) -> None:
        self._rival, self._steps, self._pooled, self._others, self._whose = rival, steps, pooled, others, whose
        self._own: Tensor | None = None
        self._texts = self._vectors = torch.empty(0)  # the prompt's own, then its others: [1 + most, rows, ...]
        self.seen = False

    def encode(self, encode: Encode, arguments: dict[str, Any]) -> tuple[Any, ...]:
        given = arguments["prompt"]
        if given is None:
            raise ValueError(f"{self._rival} needs the words of a call; pass prompt, not prompt_embeds")
        own = [given] if isinstance(given, str) else list(given)
        if len(own) != len(self._others):
            raise ValueError(f"{self._rival} was put on for {len(self._others)} prompts, and got {len(own)}")
        changes: dict[str, Any] = dict.fromkeys(("prompt_2", "prompt_3"))
        changes["do_classifier_free_guidance"] = False  # the negative prompts stay as they are
        others = []
        for k in range(max(map(len, self._others))):
            texts = [each[k] if k < len(each) else text for each, text in zip(self._others, own, strict=True)]
            changed = {name: value for name, value in {**changes, "prompt": texts}.items() if name in arguments}
            others.append(encode({**arguments, **changed}))
        found = encode(arguments)  # last, so that whoever listens has heard the prompts
        self._own = found[0]
        self._texts = torch.stack([found[0], *(other[0] for other in others)])
        self._vectors = torch.stack([found[self._pooled], *(other[self._pooled] for other in others)])
        return found

    def transform(self, forward: Forward, arguments: dict[str, Any]) -> Any:
        self._steps.begins()
        text = arguments["encoder_hidden_states"]
        rows = self._conditional(text)
        if rows is not None:
            self.seen = True
            turn = self._turn()
            if any(turn):
                index = torch.tensor(turn, device=text.device)
                for name, kept in (("encoder_hidden_states", self._texts), ("pooled_projections", self._vectors)):
                    changed = arguments[name].clone()
                    changed[rows] = kept[index, torch.arange(len(turn), device=text.device)].to(changed)
                    arguments[name] = changed
        return forward(arguments)

    def _conditional(self, text: Tensor) -> slice | None:
        """The rows of a call that hold the prompts; None where it is one of negative prompts alone."""
        if self._own is None:
            return None
        if text is self._own:
            return slice(0, len(text))
        return slice(len(self._own), len(text)) if len(text) == 2 * len(self._own) else None

    def _turn(self) -> list[int]:
        """Whose turn it is, for each row: 0 for the prompt itself, k for the k-th of its others."""
        assert self._own is not None
        now = self._whose(self._steps.index, self._steps.total)
        return [k for k in now for _ in range(len(self._own) // len(now))]
