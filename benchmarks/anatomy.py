"""How far the text stream's mean outweighs its deviations, at each block of the bundled model.

python benchmarks/anatomy.py        prints the table and writes it into docs/menagerie.md
"""

from __future__ import annotations

from pathlib import Path

import torch

from measure import table, write_section
from rarelift import pipelines
from rarelift.anatomy import captured, concentration
from rarelift.menagerie.suite import prompts

PAGE = Path(__file__).parents[1] / "docs" / "menagerie.md"
N = 64


def main() -> None:
    model = pipelines.load()
    texts = [p.text for suite in ("common", "rare") for p in prompts(suite, N, split="tune")]
    length = model.pipe.tokenizer_max_length
    ids = model.pipe.tokenizer(texts, padding="max_length", max_length=length, return_tensors="pt")
    valid = torch.nn.functional.pad(ids["attention_mask"].float(), (0, length))
    with captured(model.pipe) as streams:
        pipelines.text_to_image(model, texts, range(len(texts)), batch_size=len(texts), guidance_scale=1.0)
    rows = []
    for name, calls in streams.items():
        every = torch.stack([concentration(z) for z in calls]).mean()
        words = torch.stack([concentration(z, valid) for z in calls]).mean()
        rows.append([name, f"{every:.2f}", f"{words:.2f}"])
    text = table(["block", "every token", "without padding and the empty T5 slot"], rows)
    print(text)
    write_section(PAGE, "anatomy", text)


if __name__ == "__main__":
    main()
