"""STUB."""
from __future__ import annotations
import hashlib, json
from dataclasses import dataclass, field, asdict
from typing import Any
@dataclass(frozen=True)
class Prompt:
    id: str
    text: str
    kind: str
    rare: bool | None = None
    meta: dict[str, Any] = field(default_factory=dict, compare=False)
@dataclass(frozen=True)
class Suite:
    name: str
    version: str
    licence: str
    prompts: tuple[Prompt, ...]
    source: str
    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps([asdict(p) for p in self.prompts]).encode()).hexdigest()
