"""NegCLIP's table."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from crossmodal.data.negatives.table import (
    NegclipTable,
    TableRow,
    parse_table,
    read_table,
    with_hard_images,
    write_table,
)
from crossmodal.errors import DataError

PUBLISHED = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "negclip" / "valid_neg_clip.tsv"
ROWS = [
    TableRow("A cat on a mat", "a.png", ("A mat on a cat",), (1, 2)),
    TableRow("Two red cars\nby a house ", "b.png", ('two cars, a "red" house', "the man's"), (0,)),
    TableRow("a\tbus", "d.png", ("bus a",), ()),
]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    table = read_table(write_table(ROWS, tmp_path / "a.tsv"))
    assert list(table) == ROWS and len(table) == 3 and table[1].image == "b.png"
    assert (tmp_path / "a.tsv").read_text().startswith("\ttitle\tfilepath\tneg_caption\tneg_image\n0\tA cat")


@pytest.mark.skipif(not PUBLISHED.is_file(), reason=f"{PUBLISHED} isn't there")
def test_the_published_table(tmp_path: Path) -> None:
    table = read_table(PUBLISHED)
    assert len(table) == 4839 and {len(row.hard) for row in table} == {3}
    assert len({row.image for row in table}) == 4839
    assert write_table(list(table), tmp_path / "a.tsv").read_text() == PUBLISHED.read_text()


def test_picks_are_drawn_in_the_published_order() -> None:
    table, rng, draws = NegclipTable(ROWS), Random(4), Random(4)
    for _ in range(5):
        pick = table.pick(0, rng)
        assert pick.negative == draws.choice(ROWS[0].negatives)
        assert pick.hard == draws.choice(ROWS[0].hard)
        assert pick.hard_negative == draws.choice(ROWS[pick.hard].negatives)


def test_rows_without_hard_images_cannot_be_drawn() -> None:
    with pytest.raises(DataError, match="row 2 of the table has no hard images"):
        NegclipTable(ROWS).pick(2, Random(0))


def test_hard_images_are_added() -> None:
    assert [row.hard for row in with_hard_images(ROWS, [[1], [2], [0]])] == [(1,), (2,), (0,)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title\tfilepath\nx\ty\n", "has no column neg_caption, neg_image"),
        ("", "has no column title"),
        ("title\tfilepath\tneg_caption\tneg_image\na\tb\n", "row 0 of a.tsv has too few columns"),
        ("title\tfilepath\tneg_caption\tneg_image\na\tb\t['x'\t[]\n", "holds .* in place of a list of str"),
        ("title\tfilepath\tneg_caption\tneg_image\na\tb\t['x']\t['y']\n", "in place of a list of int"),
        ("title\tfilepath\tneg_caption\tneg_image\na\tb\t['x']\t[5]\n", r"hard images \[5\], which must be other rows"),
        ("title\tfilepath\tneg_caption\tneg_image\na\tb\t['x']\t[0]\n", "must be other rows of the 1 there are"),
        ("title\tfilepath\tneg_caption\tneg_image\na\tb\t__import__('os')\t[0]\n", "in place of a list of str"),
    ],
)
def test_other_tables_are_refused(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        parse_table(text, "a.tsv")
