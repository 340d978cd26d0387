"""What another method is to the bench: its settings, a way into a pipeline and out again, and what it costs.

A rival is a frozen dataclass whose fields are its settings. It wraps one call of a pipeline: `on` attaches it, yields
the words and arguments to call with, and takes it off exactly. `rarelift bench --method NAME:setting=value,...` makes
one by its name in `rivals.RIVALS`.
"""

from __future__ import annotations

import abc
import dataclasses
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from ..settings import one_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffusers import DiffusionPipeline

    from ..prompts import Prompt


class UnsupportedPipelineError(TypeError):
    """A rival cannot be put on this pipeline; the message names both and says why."""


@dataclass(frozen=True)
class Cost:
    """What a method declares to cost beside the untouched pipeline; what it takes is measured apart.

    Args:
        forwards: further passes of the transformer, as a share of those of the untouched call at the same guidance.
        backwards: passes backwards through the transformer, as the same share.
        encodes: further prompts encoded for each prompt.
        language_model: whether a language model is asked, once a prompt.
    """

    forwards: float = 0.0
    backwards: float = 0.0
    encodes: float = 0.0
    language_model: bool = False


@dataclass(frozen=True)
class Asked:
    """What the pipeline is to be called with: a text for each prompt, and arguments by name."""

    texts: list[str]
    call: dict[str, Any] = field(default_factory=dict)


class Rival(abc.ABC):
    """A method, with its settings as the fields of a frozen dataclass."""

    name: ClassVar[str]
    """In `RIVALS` and on the command line."""
    summary: ClassVar[str]
    """One line for `rarelift bench --list`."""
    source: ClassVar[str]
    """The paper, and the part of it that was read."""

    def prepare(self, pipe: DiffusionPipeline) -> None:  # noqa: B027 - most have nothing to load
        """Load what the method needs beside the pipeline, so that no call is timed with it.

        Raises:
            as `on`, and what loading raises.
        """

    @abc.abstractmethod
    def on(
        self, pipe: DiffusionPipeline, prompts: Sequence[Prompt], call: Mapping[str, Any]
    ) -> AbstractContextManager[Asked]:
        """Attach the method to a pipeline for one call of it on these prompts; taken off on leaving, exactly.

        Args:
            pipe: as it came from `pipelines.load`; another rival or a lift may be on it already.
            prompts: of this call, one for each picture.
            call: the pipeline's arguments as they would be without the rival (`guidance_scale`,
                `num_inference_steps`, ...).

        Raises:
            UnsupportedPipelineError: the pipeline does not allow the method. Nothing was changed.
            ValueError: a setting does not fit the pipeline or the call.
            RuntimeError: on leaving, the method was never reached, so that nothing was done.
        """

    @abc.abstractmethod
    def cost(self, call: Mapping[str, Any]) -> Cost:
        """What the method declares to cost in a call with these arguments."""

    def to_dict(self) -> dict[str, Any]:
        """The name under "rival" and the settings, as values of JSON."""
        settings = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {"rival": self.name, **{k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Rival:
        """A rival from its settings; a missing one takes its default, an unknown one raises ValueError."""
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        for key in values:
            one_of(f"setting of {cls.name}", key, [f.name for f in fields])
        return cls(**values)
