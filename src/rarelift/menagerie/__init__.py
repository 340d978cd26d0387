"""The bundled world: a drawn menagerie with a known long tail, and the models trained on it."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
PIPELINE = WEIGHTS / "pipeline"
JUDGE = WEIGHTS / "judge"
CLIP = WEIGHTS / "clip"
