"""Prompts to draw: our own suites, and readers for the files of public benchmarks.

    load("rare")                            360 prompts of our own for real models
    load("menagerie-rare", split="tune")    prompts of the bundled world
    load("path/to/rarebench")               a benchmark's own files, as its authors publish them

No benchmark is part of this package: not every licence allows it, and a copy would age. The readers follow the files
in their repositories, for PIE-Bench its README and for the questions of DPG-Bench its evaluation script; a file that
differs is an error that says where, so that no prompt is lost or read as something else.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, cast

from .settings import one_of

Atom = tuple[str, str]
Row = dict[str, Any]
KINDS = (
    *("single_property", "single_shape", "single_texture", "single_action", "single_complex"),
    *("multi_joined", "multi_related", "multi_complex"),
)
_VERSION = "1"  # of the list behind "rare"; what benchmarks/make_rare_prompts.py writes changes only with it
_RARE = Path(__file__).parent / "data" / "rare_prompts.jsonl"
_UNVERSIONED = "unversioned"  # a benchmark's files carry no version; the digest tells them apart


@dataclass(frozen=True)
class Prompt:
    """What to draw, and what is known about it.

    Args:
        id: unique in its suite, the same in every run.
        text: the prompt; of an edit, what the edited picture shows.
        kind: one of `KINDS`, or a category of the benchmark it comes from.
        rare: whether it is rare by construction; None where the source does not say.
        atoms: (question, expected answer) pairs for visual question answering, one for each thing to check.
        source_text: of an edit, what the source picture shows.
        image: of an edit, path of the source picture; not checked to exist.
        meta: whatever else the source says, as JSON values.
    """

    id: str
    text: str
    kind: str
    rare: bool | None = None
    atoms: tuple[Atom, ...] = ()
    source_text: str | None = None
    image: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Suite:
    """Prompts under one name.

    Raises:
        ValueError: there is no prompt, or two share an id.
    """

    name: str
    version: str
    licence: str
    source: str
    prompts: tuple[Prompt, ...]

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError(f"suite {self.name!r} holds no prompts; give it at least one")
        seen: set[str] = set()
        for prompt in self.prompts:
            if prompt.id in seen:
                raise ValueError(f"suite {self.name!r} holds the id {prompt.id!r} twice; every id must be its own")
            seen.add(prompt.id)

    @property
    def digest(self) -> str:
        """SHA-256 of the prompts as canonical JSON.

        `image` is left out, for it depends on where the files lie; `meta` keeps the path that the file gives.
        """
        rows = [{k: v for k, v in asdict(prompt).items() if k != "image"} for prompt in self.prompts]
        return hashlib.sha256(json.dumps(rows, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def load(
    name_or_path: str | Path, format: str | None = None, limit: int | None = None, split: str | None = None
) -> Suite:
    """A suite by its name in `SUITES`, or the prompts in a file or folder.

    Args:
        name_or_path: a name, or a path. A name wins: write "./rare" for a file called rare.
        format: one of `FORMATS`, for a path. None finds it out from the names of files and keys.
        limit: at most so many prompts, from the first on; None for all.
        split: "report" (the default) or "tune", for the Menagerie's suites only.

    Raises:
        ValueError: something is wrong; the message says where, what was found and what is accepted.
    """
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ValueError(f"limit must be a whole number of at least 1, or None for all prompts, got {limit!r}")
    if format is None and name_or_path in SUITES:
        suite = SUITES[str(name_or_path)](split)
    else:
        if split is not None:
            raise ValueError(f"split={split!r} is for the suites of the Menagerie; {str(name_or_path)!r} has no splits")
        suite = _from_path(name_or_path, format)
    return suite if limit is None else replace(suite, prompts=suite.prompts[:limit])


def _from_path(given: str | Path, format: str | None) -> Suite:
    if format is not None:
        one_of("format", format, FORMATS)
    path = Path(given)
    if not path.exists():
        if format is None and isinstance(given, str) and re.fullmatch(r"[\w-]+", given):
            one_of("suite", given, SUITES, hint=" There is no such file or folder either.")
        raise ValueError(f"{path}: there is no such file or folder; give an existing path or one of {_list(SUITES)}")
    name = format or _guess(path)
    chosen = FORMATS[name]
    return Suite(
        name=name if name not in ("lines", "jsonl") else path.stem,
        version=_UNVERSIONED,
        licence=chosen.licence,
        source=chosen.source or str(path),
        prompts=tuple(chosen.read(path)),
    )


# ------------------------------------------------------------------------------------------------ our own suites


def _rare(split: str | None) -> Suite:
    if split is not None:
        raise ValueError(f"split={split!r} is for the suites of the Menagerie; 'rare' has no splits")
    return Suite("rare", _VERSION, "Apache-2.0", "benchmarks/make_rare_prompts.py", tuple(_read_jsonl(_RARE)))


def _menagerie(suite: str, split: str | None) -> Suite:
    """512 prompts, which every suite and split has.

    A Menagerie picture shows one animal with a colour, a pattern, something worn and a scene, all of them named.
    Where one alone is unusual for the animal, the prompt is "single_property" (colour, wearable) or "single_texture"
    (pattern), else "single_complex". What training never shows counts as rare, too. Shapes and actions it cannot draw.
    """
    from .menagerie import suite as world

    half = one_of("split", "report" if split is None else split, ("report", "tune"))
    found = world.prompts(cast(world.Suite, suite), 512, split=cast(world.Split, half))
    prompts = tuple(
        Prompt(
            id="-".join(drawn.text.split()),
            text=drawn.text,
            kind=f"single_{suite if suite in ('property', 'texture') else 'complex'}",
            rare=suite != "common",
            meta={**asdict(drawn.thing), "suite": suite, "split": half},
        )
        for drawn in found
    )
    return Suite(f"menagerie-{suite}", str(world.VERSION), "Apache-2.0", f"rarelift.menagerie.suite, {half}", prompts)


SUITES: Mapping[str, Callable[[str | None], Suite]] = {
    "rare": _rare,
    "menagerie-rare": lambda split: _menagerie("rare", split),
    "menagerie-property": lambda split: _menagerie("property", split),
    "menagerie-texture": lambda split: _menagerie("texture", split),
    "menagerie-common": lambda split: _menagerie("common", split),
    "menagerie-never": lambda split: _menagerie("never", split),
}

# --------------------------------------------------------------------------------------------- reading and refusing


def _wrong(path: Path, where: str, found: object, expected: str) -> NoReturn:
    """Raise ValueError with the place, what is there, shortened, and what should be."""
    said = repr(found) if not isinstance(found, _Said) else found.text
    said = said if len(said) <= 120 else said[:117] + "..."
    raise ValueError(f"{path}{', ' if where else ''}{where}: found {said}; expected {expected}")


@dataclass(frozen=True)
class _Said:
    """Words for what was found, where its repr would not do."""

    text: str


def _list(names: Mapping[str, object] | tuple[str, ...]) -> str:
    return ", ".join(map(repr, names))


def _text(path: Path) -> str:
    if path.is_dir():
        _wrong(path, "", _Said("a folder"), "a file")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")  # a byte order mark is no part of the first prompt
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        _wrong(path, f"line {line}", _Said(f"byte 0x{data[error.start]:02x}"), "UTF-8; save the file in that encoding")
    if not text.strip():
        _wrong(path, "", _Said("nothing"), "at least one prompt")
    return text


def _lines(path: Path) -> list[tuple[int, str]]:
    """(number, text) of the lines that are not blank; only a line feed ends a line."""
    return [(i, line.strip()) for i, line in enumerate(_text(path).split("\n"), 1) if line.strip()]


def _json_lines(path: Path) -> list[tuple[str, Row]]:
    """("line 3", object) of a file with a JSON object on every line."""
    rows = []
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            _wrong(path, f"line {number}", line, f"a JSON object on one line ({error.msg}, column {error.colno})")
        if not isinstance(row, dict):
            _wrong(path, f"line {number}", row, "a JSON object")
        rows.append((f"line {number}", row))
    return rows


def _json(path: Path) -> Any:
    """A JSON document; a key that comes twice is an error, for json would keep the last one only."""
    text = _text(path)

    def unique(pairs: list[tuple[str, Any]]) -> Row:
        row: Row = {}
        for key, value in pairs:
            if key in row:
                line = text.count("\n", 0, text.rfind(json.dumps(key))) + 1
                _wrong(path, f"line {line}", _Said(f"the key {key!r} twice"), "every key once")
            row[key] = value
        return row

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        _wrong(path, f"line {error.lineno}", _Said(f"no JSON ({error.msg}, column {error.colno})"), "a JSON document")


def _string(path: Path, where: str, row: Row, key: str, *, empty: bool = False) -> str:
    if key not in row:
        _wrong(path, where, _Said(f"the keys {_list(tuple(row))}"), f"the key {key!r}")
    value = row[key]
    if not isinstance(value, str) or not (value.strip() or empty):
        _wrong(path, where, value, f"{'text' if empty else 'text that is not empty'} in {key!r}")
    return value.strip()


def _pairs(path: Path, where: str, row: Row, key: str) -> tuple[Atom, ...]:
    value = row.get(key)
    good = isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) and part.strip() for part in pair)
        for pair in value
    )
    if not good:
        _wrong(path, where, value, f"a list of [question, answer] in {key!r}")
    return tuple((question, answer) for question, answer in cast("list[list[str]]", value))


def _files(path: Path, pattern: str) -> list[Path]:
    """`path` itself, or what fits `pattern` in that folder, in order."""
    files = sorted(p for p in path.glob(pattern) if p.is_file()) if path.is_dir() else [path]
    if not files:
        _wrong(path, "", _Said(f"no {pattern}"), f"a folder with {pattern}")
    return files


def _file(path: Path, *names: str) -> Path:
    """`path` itself, or the first of `names` in that folder."""
    if not path.is_dir():
        return path
    for name in names:
        if (path / name).is_file():
            return path / name
    _wrong(path, "", _Said("none of its files"), f"a folder with {' or '.join(names)}")


def _each_line(path: Path, kind: str, rare: bool | None) -> list[Prompt]:
    """A prompt a line; the id counts all lines, so that a blank one more or less is seen."""
    return [Prompt(f"{path.stem}-{number:04d}", text, kind, rare) for number, text in _lines(path)]


# --------------------------------------------------------------------------------------------------------- formats

_RAREBENCH = {
    "single_1property": "single_property",
    "single_2shape": "single_shape",
    "single_3texture": "single_texture",
    "single_4action": "single_action",
    "single_5complex": "single_complex",
    "multi_1and": "multi_joined",
    "multi_2relation": "multi_related",
    "multi_3complex": "multi_complex",
}
_PIE_TYPES = {
    "0": "random",
    "1": "change_object",
    "2": "add_object",
    "3": "delete_object",
    "4": "change_attribute_content",
    "5": "change_attribute_pose",
    "6": "change_attribute_color",
    "7": "change_attribute_material",
    "8": "change_background",
    "9": "change_style",
}
_GENEVAL, _GENEVAL2, _DPG = "evaluation_metadata.jsonl", "geneval2_data.jsonl", "dpg_bench.csv"
_VBENCH, _VBENCH2, _PIE = "VBench_full_info.json", "VBench2_full_info.json", "mapping_file.json"


def _rarebench_name(path: Path) -> str:
    return path.stem.removeprefix("rarebench_")


def _read_rarebench(path: Path) -> list[Prompt]:
    prompts = []
    for file in _files(path, "*.txt"):
        name = _rarebench_name(file)
        if name not in _RAREBENCH:
            _wrong(
                file, "", _Said(f"a file called {file.name!r}"), f"one of {', '.join(f'{n}.txt' for n in _RAREBENCH)}"
            )
        prompts += _each_line(file, _RAREBENCH[name], rare=True)
    return prompts


def _read_compbench(path: Path) -> list[Prompt]:
    """The category is the file's name without _val: color, shape, texture, spatial, ..., of ++ 3d_spatial, numeracy."""
    prompts = []
    for file in _files(path, "*_val.txt"):
        if not file.name.endswith("_val.txt"):
            _wrong(file, "", _Said(f"a file called {file.name!r}"), "a name that ends in _val.txt")
        prompts += _each_line(file, file.stem.removesuffix("_val"), rare=None)
    return prompts


def _read_geneval(path: Path) -> list[Prompt]:
    """GenEval checks with a detector; the questions are ours, one for each thing, colour and position it checks."""
    file = _file(path, _GENEVAL)
    prompts = []
    for i, (where, row) in enumerate(_json_lines(file), 1):
        tag, text = _string(file, where, row, "tag"), _string(file, where, row, "prompt")
        atoms = _geneval_atoms(file, where, row.get("include"))
        meta: Row = {key: row[key] for key in ("include", "exclude") if key in row}
        prompts.append(Prompt(f"geneval-{i:04d}", text, tag, atoms=atoms, meta=meta))
    return prompts


def _geneval_atoms(file: Path, where: str, include: object) -> tuple[Atom, ...]:
    if not isinstance(include, list) or not include or not all(isinstance(thing, dict) for thing in include):
        _wrong(file, where, include, "a list of {class, count, ...} in 'include'")
    names = [_string(file, where, thing, "class") for thing in include]
    atoms: list[Atom] = []
    for name, thing in zip(names, include, strict=True):
        count = thing.get("count")
        if type(count) is not int or count < 1:
            _wrong(file, where, count, f"a whole number of at least 1 in 'count' of {name!r}")
        if count == 1:
            atoms.append((f"Does the picture show this: {name}?", "yes"))
        else:
            atoms.append((f"How many of this does the picture show: {name}?", str(count)))
        if "color" in thing:
            atoms.append((f"What color is the {name}?", _string(file, where, thing, "color")))
        if "position" in thing:
            place = thing["position"]
            if not (
                isinstance(place, list)
                and len(place) == 2
                and isinstance(place[0], str)
                and type(place[1]) is int
                and 0 <= place[1] < len(names)
            ):
                _wrong(file, where, place, f"[relation, index into 'include'] in 'position' of {name!r}")
            atoms.append((f"Is the {name} {place[0]} the {names[place[1]]}?", "yes"))
    return tuple(atoms)


def _read_geneval2(path: Path) -> list[Prompt]:
    """The category is the number of atoms, by which GenEval 2 reports."""
    file = _file(path, _GENEVAL2)
    prompts = []
    for i, (where, row) in enumerate(_json_lines(file), 1):
        text, skills = _string(file, where, row, "prompt"), row.get("skills")
        atoms = _pairs(file, where, row, "vqa_list")
        if not isinstance(skills, list) or len(skills) != len(atoms) or not all(isinstance(s, str) for s in skills):
            _wrong(file, where, skills, f"a list of {len(atoms)} names in 'skills', one for each entry of 'vqa_list'")
        count = row.get("atom_count")  # not the length of vqa_list, which also asks about "a"
        if type(count) is not int:
            _wrong(file, where, count, "a whole number in 'atom_count'")
        prompts.append(Prompt(f"geneval2-{i:04d}", text, f"atoms_{count}", atoms=atoms, meta={"skills": skills}))
    return prompts


def _read_dpg(path: Path) -> list[Prompt]:
    """A prompt a file, its name the id. The questions' order and dependencies are kept in `meta`."""
    folder = path / "prompts" if (path / "prompts").is_dir() else path
    tables = sorted(path.glob("*.csv")) if path.is_dir() else []
    if not tables and folder == path and (path.parent / _DPG).is_file():
        tables = [path.parent / _DPG]
    if len(tables) > 1:
        _wrong(path, "", _Said(f"{len(tables)} files *.csv"), "one file of questions at most")
    asked = _dpg_questions(tables[0]) if tables else {}
    prompts = []
    for file in _files(folder, "*.txt"):
        text, rows = " ".join(_text(file).split()), asked.get(file.stem, [])
        atoms = tuple((row["question_natural_language"].strip(), "yes") for row in rows)
        kept = ("proposition_id", "dependency", "category_broad", "category_detailed", "tuple")
        meta = {"questions": [{k: row[k] for k in kept if row.get(k)} for row in rows]} if rows else {}
        prompts.append(Prompt(file.stem, text, "dense", atoms=atoms, meta=meta))
    if tables and not any(prompt.atoms for prompt in prompts):
        _wrong(tables[0], "", _Said("no question about any prompt"), f"item_id as the files are called in {folder}")
    return prompts


def _dpg_questions(file: Path) -> dict[str, list[dict[str, str]]]:
    table = csv.DictReader(io.StringIO(_text(file), newline=""))
    needed = ("item_id", "question_natural_language")
    missing = [column for column in needed if column not in (table.fieldnames or ())]
    if missing:
        _wrong(file, "line 1", _Said(f"the columns {', '.join(table.fieldnames or ())}"), f"the column {missing[0]}")
    asked: dict[str, list[dict[str, str]]] = {}
    try:
        for row in table:
            if None in row or None in row.values():
                _wrong(
                    file, f"line {table.line_num}", _Said("another number of cells"), "as many as the first line has"
                )
            if not any(row.values()):
                continue  # an empty row of a spreadsheet
            for column in needed:
                if not row[column].strip():
                    _wrong(file, f"line {table.line_num}", row[column], f"text that is not empty in {column!r}")
            asked.setdefault(row["item_id"].strip(), []).append(row)
    except csv.Error as error:
        _wrong(file, f"line {table.line_num}", _Said(f"no CSV ({error})"), "comma-separated cells")
    return asked


def _read_vbench(path: Path, info: str = _VBENCH, within: str = "prompts_per_dimension") -> list[Prompt]:
    """The category is the dimension; several are joined by a plus, for a prompt may serve them all."""
    if path.is_dir() and not (path / info).is_file():
        folder = path / within if (path / within).is_dir() else path
        files = [
            file for file in _files(folder, "*.txt") if not file.stem.startswith("all_")
        ]  # those repeat the others
        return [prompt for file in files for prompt in _each_line(file, file.stem, rare=None)]
    file = _file(path, info)
    if file.suffix == ".txt":
        return _each_line(file, file.stem, rare=None)
    rows = _json(file)
    if not isinstance(rows, list) or not rows:
        _wrong(file, "", rows, "a list of {prompt_en, dimension}")
    prompts = []
    for i, row in enumerate(rows, 1):
        where = f"item {i} of the list"
        if not isinstance(row, dict):
            _wrong(file, where, row, "{prompt_en, dimension}")
        dimensions = row.get("dimension")
        if not isinstance(dimensions, list) or not dimensions or not all(isinstance(d, str) for d in dimensions):
            _wrong(file, where, dimensions, "a list of names in 'dimension'")
        meta = {key: value for key, value in row.items() if key != "prompt_en"}
        text = _string(file, where, row, "prompt_en")
        prompts.append(Prompt(f"vbench-{i:04d}", text, "+".join(dimensions), meta=meta))
    return prompts


def _read_vbench2(path: Path) -> list[Prompt]:
    return _read_vbench(path, _VBENCH2, "prompt")


def _read_pie(path: Path) -> list[Prompt]:
    """Brackets mark what an edit changes and are no part of a prompt. `metrics.edit.unedited` reads `meta["mask"]`."""
    file = _file(path, _PIE)
    rows = _json(file)
    if not isinstance(rows, dict) or not rows:
        _wrong(file, "", rows, "an object of id: {image_path, original_prompt, editing_prompt, ...}")
    prompts = []
    for key, row in rows.items():
        where = f"entry {key!r}"
        if not isinstance(row, dict):
            _wrong(file, where, row, "{image_path, original_prompt, editing_prompt, ...}")
        text, image = _string(file, where, row, "editing_prompt"), _string(file, where, row, "image_path")
        source = _string(file, where, row, "original_prompt", empty=True)
        kind = str(row.get("editing_type_id"))
        if kind not in _PIE_TYPES:
            _wrong(file, where, row.get("editing_type_id"), f"one of {_list(_PIE_TYPES)} in 'editing_type_id'")
        mask = row.get("mask", [])
        if not isinstance(mask, list) or len(mask) % 2 or not all(type(n) is int and n >= 0 for n in mask):
            _wrong(file, where, mask, "a list of first pixel and length in turn in 'mask'")
        prompts.append(
            Prompt(
                id=key,
                text=_unbracketed(text),
                kind=_PIE_TYPES[kind],
                source_text=_unbracketed(source),
                image=str(file.parent / "annotation_images" / image),
                meta={
                    "image_path": image,
                    "instruction": row.get("editing_instruction", ""),
                    "blended_word": row.get("blended_word", ""),
                    **({"mask": mask} if "mask" in row else {}),
                },
            )
        )
    return prompts


def _unbracketed(text: str) -> str:
    return " ".join(text.replace("[", "").replace("]", "").split())


def _read_lines(path: Path) -> list[Prompt]:
    return _each_line(path, "prompt", rare=None)


def _read_jsonl(path: Path) -> list[Prompt]:
    """The fields of `Prompt` by their names; a relative `image` is one beside the file."""
    prompts: list[Prompt] = []
    lines: dict[str, str] = {}
    for where, row in _json_lines(path):
        for key in row:
            if key not in Prompt.__dataclass_fields__:
                _wrong(path, where, _Said(f"the key {key!r}"), f"some of {_list(tuple(Prompt.__dataclass_fields__))}")
        name, text, kind = (_string(path, where, row, key) for key in ("id", "text", "kind"))
        if name in lines:
            _wrong(path, where, _Said(f"the id {name!r} of {lines[name]} again"), "an id of its own")
        lines[name] = where
        if not isinstance(row.get("rare"), bool | None):
            _wrong(path, where, row["rare"], "true, false or null in 'rare'")
        meta = row.get("meta", {})
        if not isinstance(meta, dict):
            _wrong(path, where, meta, "an object in 'meta'")
        source = None if row.get("source_text") is None else _string(path, where, row, "source_text")
        image = None if row.get("image") is None else _string(path, where, row, "image")
        prompts.append(
            Prompt(
                id=name,
                text=text,
                kind=kind,
                rare=row.get("rare"),
                atoms=_pairs(path, where, row, "atoms") if "atoms" in row else (),
                source_text=source,
                image=None if image is None else str(path.parent / image),
                meta=meta if image is None else {**meta, "image_path": image},
            )
        )
    return prompts


@dataclass(frozen=True)
class Format:
    """How the files of a benchmark look, whose they are, and how they are read."""

    looks: str
    licence: str
    source: str
    read: Callable[[Path], list[Prompt]]


_THEIRS = "not stated"  # the repository has no licence file, and its README names none
_YOURS = "see the source"  # a list of the user's own
FORMATS: Mapping[str, Format] = {
    "rarebench": Format(
        "a folder of single_1property.txt ... multi_3complex.txt, a prompt a line",
        _THEIRS,
        "RareBench, arXiv 2410.22376, github.com/krafton-ai/Rare-to-Frequent",
        _read_rarebench,
    ),
    "t2i-compbench": Format(
        "a folder of *_val.txt, or one of them, a prompt a line",
        "MIT",
        "T2I-CompBench and T2I-CompBench++, arXiv 2307.06350, github.com/Karine-Huang/T2I-CompBench",
        _read_compbench,
    ),
    "geneval": Format(
        f"{_GENEVAL}: tag, include, prompt",
        "MIT",
        "GenEval, arXiv 2310.11513, github.com/djghosh13/geneval",
        _read_geneval,
    ),
    "geneval2": Format(
        f"{_GENEVAL2}: prompt, atom_count, vqa_list, skills",
        "CC-BY-NC-4.0",
        "GenEval 2, arXiv 2512.16853, github.com/facebookresearch/GenEval2",
        _read_geneval2,
    ),
    "dpg": Format(
        f"a folder of *.txt, a prompt a file; questions in {_DPG} in it or beside it",
        "Apache-2.0",
        "DPG-Bench of ELLA, arXiv 2403.05135, github.com/TencentQQGYLab/ELLA",
        _read_dpg,
    ),
    "vbench": Format(
        f"{_VBENCH}: prompt_en, dimension; or a folder of *.txt, a prompt a line",
        "Apache-2.0",
        "VBench, arXiv 2311.17982, github.com/Vchitect/VBench",
        _read_vbench,
    ),
    "vbench2": Format(
        f"{_VBENCH2}: prompt_en, dimension; or a folder of *.txt, a prompt a line",
        "Apache-2.0",
        "VBench-2.0, arXiv 2503.21755, github.com/Vchitect/VBench",
        _read_vbench2,
    ),
    "pie": Format(
        f"{_PIE}, beside annotation_images/: id -> image_path, original_prompt, editing_prompt, editing_type_id",
        _THEIRS,
        "PIE-Bench of PnP Inversion, arXiv 2310.01506, github.com/cure-lab/PnPInversion",
        _read_pie,
    ),
    "lines": Format("a text file, a prompt a line", _YOURS, "", _read_lines),
    "jsonl": Format("a JSON object a line: id, text, kind and the other fields of Prompt", _YOURS, "", _read_jsonl),
}


def _guess(path: Path) -> str:
    """The one format that the names of files, or the keys in the file, allow."""
    found = _by_folder(path) if path.is_dir() else _by_file(path)
    if len(found) == 1:
        return found[0]
    said = f"what could be {' or '.join(map(repr, found))}" if found else "nothing that tells its format"
    known = "; ".join(f"{name!r}: {known.looks}" for name, known in FORMATS.items())
    _wrong(path, "", _Said(said), f"format= one of {known}")


def _by_folder(path: Path) -> list[str]:
    texts = [p for p in path.glob("*.txt") if p.is_file()]
    signs = {
        "rarebench": bool(texts) and all(_rarebench_name(p) in _RAREBENCH for p in texts),
        "t2i-compbench": any(p.name.endswith("_val.txt") for p in texts),
        "geneval": (path / _GENEVAL).is_file(),
        "geneval2": (path / _GENEVAL2).is_file(),
        "dpg": (path / _DPG).is_file() or (bool(texts) and (path.parent / _DPG).is_file()),
        "vbench": (path / _VBENCH).is_file() or (path / "prompts_per_dimension").is_dir(),
        "vbench2": (path / _VBENCH2).is_file() or (path / "VBench2_full_text.txt").is_file(),
        "pie": (path / _PIE).is_file(),
    }
    return [name for name, seen in signs.items() if seen]


def _by_file(path: Path) -> list[str]:
    if path.suffix == ".txt":
        if _rarebench_name(path) in _RAREBENCH:
            return ["rarebench"]
        return ["t2i-compbench"] if path.name.endswith("_val.txt") else ["lines"]
    if path.suffix == ".jsonl":
        row = _json_lines(path)[0][1]
        signs = {"geneval": {"tag", "include"}, "geneval2": {"vqa_list"}, "jsonl": {"id", "text"}}
    elif path.suffix == ".json":
        document = _json(path)
        items = list(document.values()) if isinstance(document, dict) else document
        row = items[0] if isinstance(items, list) and items and isinstance(items[0], dict) else {}
        signs = {"vbench2" if path.name == _VBENCH2 else "vbench": {"prompt_en"}, "pie": {"editing_prompt"}}
    else:
        return []
    return [name for name, keys in signs.items() if keys <= set(row)]
