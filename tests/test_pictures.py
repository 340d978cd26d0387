from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rarelift.pictures import check_suffix, check_writable, grid, read_metadata, save

RED, BLUE, GRAY, BLACK = (200, 0, 0), (0, 0, 200), (120, 120, 120), (0, 0, 0)


def picture(colour: tuple[int, int, int] = RED, side: int = 8) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


def test_settings_come_back_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "lion.png"
    told = {
        "prompt": 'a "purple" lion\nnaïve 紫',
        "seed": 3,
        "alpha": 1.5,
        "settings": {"blocks": None, "tokens": ["a"]},
    }
    save(picture(), path, told)
    found = read_metadata(path)
    versions = found.pop("versions")
    assert found == told
    assert set(versions) == {"rarelift", "torch", "diffusers", "transformers"}
    assert all(versions.values())
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.convert("RGB").tobytes() == picture().tobytes()
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_a_picture_of_others_has_no_settings(tmp_path: Path) -> None:
    picture().save(tmp_path / "plain.png")
    assert read_metadata(tmp_path / "plain.png") == {}


@pytest.mark.parametrize(
    ("image", "metadata", "error"),
    [
        (Image.new("CMYK", (8, 8)), {}, OSError),  # PNG cannot hold it: fails while the file is open
        (picture(), {"seed": object()}, TypeError),
    ],
)
def test_a_failed_save_leaves_nothing_and_spoils_nothing(
    tmp_path: Path, image: Image.Image, metadata: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        save(image, tmp_path / "new.png", metadata)
    assert list(tmp_path.iterdir()) == []
    save(picture(), tmp_path / "old.png", {"seed": 1})
    before = (tmp_path / "old.png").read_bytes()
    with pytest.raises(error):
        save(image, tmp_path / "old.png", metadata)
    assert [p.name for p in tmp_path.iterdir()] == ["old.png"]
    assert (tmp_path / "old.png").read_bytes() == before


def test_a_picture_is_replaced(tmp_path: Path) -> None:
    for seed in (1, 2):
        save(picture(), tmp_path / "a.png", {"seed": seed})
    assert read_metadata(tmp_path / "a.png")["seed"] == 2


@pytest.mark.parametrize("act", [check_writable, lambda path: save(picture(), path, {})])
def test_paths_that_cannot_be_written_are_named(tmp_path: Path, act: Any) -> None:
    (tmp_path / "taken.png").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"^cannot write .*taken\.png: it is a folder$"):
        act(tmp_path / "taken.png")
    for below in ("file/a.png", "file/deeper/a.png"):
        with pytest.raises(OSError, match=rf"^cannot write .*{below}: \w"):
            act(tmp_path / below)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "taken.png"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match=r"^cannot write .*a\.png: Permission denied$"):
        check_writable(tmp_path / "a.png")
    tmp_path.chmod(0o700)


def test_a_writable_path_is_left_alone(tmp_path: Path) -> None:
    check_writable(tmp_path / "deep" / "a.png")
    assert not list(tmp_path.rglob("*"))
    save(picture(), tmp_path / "deep" / "a.png", {})
    assert (tmp_path / "deep" / "a.png").is_file()


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "folder/a.webp"])
def test_other_formats_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"pictures are PNGs.*a\.\w+$"):
        check_suffix(Path(name))
    check_suffix(Path("a.png"))
    check_suffix(Path("pictures.v2"))


# ---------------------------------------------------------------------------------------------- grids


def box(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of everything in `colour`."""
    rows, columns = np.nonzero((np.asarray(sheet) == colour).all(-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize(("cell", "side"), [(40, 8), (40, 90)])
def test_pictures_stand_in_rows_and_columns(cell: int, side: int) -> None:
    rows = [[picture(RED, side), picture(BLUE, side)], [picture(GRAY, side), picture(BLACK, side)]]
    sheet = grid(rows, ["untouched", "lifted"], ["one", "two"], cell=cell)
    boxes = [box(sheet, colour) for colour in (RED, BLUE, GRAY, BLACK)]
    assert {(right - left, bottom - top) for left, top, right, bottom in boxes} == {(cell, cell)}
    red, blue, gray, black = boxes
    assert (red[1], gray[1]) == (blue[1], black[1])
    assert (red[0], blue[0]) == (gray[0], black[0])
    assert red[2] < blue[0]
    assert red[3] < gray[1]
    assert sheet.width >= blue[2]
    assert sheet.height >= gray[3]


@pytest.mark.parametrize(("size", "expected"), [((8, 4), (40, 20)), ((60, 120), (20, 40))])
def test_a_picture_keeps_its_proportions(size: tuple[int, int], expected: tuple[int, int]) -> None:
    sheet = grid([[Image.new("RGB", size, RED), picture(BLUE)]], ["row"], ["one", "two"], cell=40)
    left, top, right, bottom = box(sheet, RED)
    assert (right - left, bottom - top) == expected
    beside = box(sheet, BLUE)
    assert (left + right) / 2 == beside[0] - 10 - 20  # in the middle of its cell, one gap before the next
    assert top + bottom == beside[1] + beside[3]


def test_a_sheet_grows_by_one_cell_per_picture() -> None:
    def size(rows: int, columns: int, cell: int = 50) -> tuple[int, int]:
        pictures = [[picture()] * columns for _ in range(rows)]
        return grid(pictures, ["r"] * rows, ["c"] * columns, cell=cell).size

    (width, height), (wider, same), (_, higher) = size(1, 1), size(1, 3), size(4, 1)
    step = size(1, 2)[0] - width
    assert 50 < step < 70
    assert (wider, same) == (width + 2 * step, height)
    assert higher == height + 3 * step
    assert size(1, 1, 80) == (width + 30, height + 30)


def test_labels_get_the_room_they_need() -> None:
    def size(row: str, column: str) -> tuple[int, int]:
        return grid([[picture()]], [row], [column], cell=60).size

    short = size("a", "a lion")
    assert size("a", "a purple striped lion wearing a crown at night")[1] > short[1]
    assert size("a", "a purple striped lion wearing a crown at night")[0] == short[0]
    assert size("untouched, guidance 2", "a lion")[0] > short[0] + 50
    sheet = np.asarray(grid([[picture()]], ["lifted"], ["a lion"], cell=60))
    left, top, _, _ = box(Image.fromarray(sheet), RED)
    assert (sheet[: top - 1, left:] < 100).any()  # the column's label, above
    assert (sheet[top:, : left - 1] < 100).any()  # the row's, to the left


def test_marks_frame_each_picture() -> None:
    rows = [[picture(RED), picture(BLUE)], [picture(GRAY), picture(BLACK)]]
    marks = [[True, False], [None, True]]
    plain = grid(rows, ["a", "b"], ["c", "d"])
    sheet = grid(rows, ["a", "b"], ["c", "d"], marks=marks)
    assert sheet.size == plain.size

    def around(colour: tuple[int, int, int]) -> set[tuple[int, ...]]:
        left, top, right, bottom = box(plain, colour)
        middle = (left + right) // 2, (top + bottom) // 2
        spots = [(left - 2, middle[1]), (right + 1, middle[1]), (middle[0], top - 2), (middle[0], bottom + 1)]
        return {sheet.getpixel(spot) for spot in spots}  # type: ignore[misc]

    ((red, green, blue),) = around(RED)
    assert green > red + 50
    assert green > blue + 50
    assert around(BLACK) == around(RED)
    ((red, green, blue),) = around(BLUE)
    assert red > green + 50
    assert around(GRAY) == {(255, 255, 255)}
    for colour in (RED, BLUE, GRAY, BLACK):  # the frame covers no picture
        assert box(sheet, colour) == box(plain, colour)


@pytest.mark.parametrize(("rows", "columns"), [(["a"], ["c", "d"]), (["a", "b"], ["c"]), (["a", "b"], [])])
def test_labels_must_fit(rows: list[str], columns: list[str]) -> None:
    with pytest.raises(ValueError, match=r"2 rows of \[2, 2\] pictures do not fit the labels"):
        grid([[picture()] * 2] * 2, rows, columns)
