"""The report: complete in itself, every picture decodes, right and wrong marked, input escaped."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossmodal.errors import DataError
from crossmodal.evaluate.plots import draw_attention, plot_edits, png
from crossmodal.evaluate.report import Hit, Query, Shown, Table, data_uri, write_report

_VOID = {"meta", "link", "img", "br"}


class _Page(HTMLParser):
    """Elements with their attributes, and the text; asserts that tags nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and data.strip():
            self.words.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


PICTURE = Image.new("RGB", (32, 24), (10, 90, 160))


def _page(path: Path) -> _Page:
    attention = draw_attention(PICTURE, [[0.0, 0.0, 0.5, 1.0]], ["cube"], [[1.0]])
    write_report(
        path,
        title="Demo <b>bold</b>",
        intro="Two arms & one warm-up.",
        tables=[Table("Recall, %", ["run", "R@1"], [["iais", "54.0"], ["chance", "0.5"]], note="ties half")],
        figures=[Shown("Edits", plot_edits({"iais": {"swapped": 0.6}}), "Bars of accuracy", note="n = 200")],
        queries=[
            Query(
                [Hit(False, image=PICTURE, score=1.5), Hit(True, image=np.zeros((400, 600, 3), np.uint8))],
                text='a "red" <cube>',
            ),
            Query([Hit(True, text="a blue square")], image=PICTURE),
            Query([Hit(False, text="two balls")], image=PICTURE, rank=16),
            Query([Hit(False, text="no ball")], image=PICTURE),
        ],
        attention=[Shown("a cube", attention, "The word cube looks at the left half")],
    )
    return _Page(path.read_text(encoding="utf-8"))


def test_every_picture_decodes_and_has_words(tmp_path: Path) -> None:
    images = _page(tmp_path / "report.html").all("img")
    assert len(images) == 2 + 2 + 3
    for image in images:
        assert image["alt"]
        head, content = str(image["src"]).split(",", 1)
        assert head in ("data:image/png;base64", "data:image/jpeg;base64")
        with Image.open(io.BytesIO(base64.b64decode(content, validate=True))) as picture:
            picture.load()


def test_nothing_comes_from_outside(tmp_path: Path) -> None:
    page = _page(tmp_path / "report.html")
    assert not page.all("script") and not page.all("iframe")
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#")), (tag, attributes)
    source = (tmp_path / "report.html").read_text()
    assert "url(" not in source and "@import" not in source and "http" not in source.replace("http-equiv", "")


def test_accessible_skeleton(tmp_path: Path) -> None:
    page = _page(tmp_path / "report.html")
    assert page.all("html")[0]["lang"] == "en"
    assert any(m.get("name") == "viewport" for m in page.all("meta"))
    assert len(page.all("h1")) == 1 and len(page.all("main")) == 1
    ids = [str(attributes["id"]) for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = {str(a["aria-labelledby"]) for _, a in page.elements if "aria-labelledby" in a}
    assert named <= set(ids)
    assert {str(a["href"])[1:] for a in page.all("a")} <= set(ids)
    assert {th["scope"] for th in page.all("th")} == {"col", "row"}


def test_what_a_reader_sees(tmp_path: Path) -> None:
    words = _page(tmp_path / "report.html").words
    text = " ".join(words)
    assert "Demo <b>bold</b>" in text and 'a "red" <cube>' in text and "Two arms & one warm-up." in text
    assert "54.0" in words and "ties half" in words and "n = 200" in words
    assert words.count("✓ right") == 2 and words.count("✗ wrong") == 3 and "1.5" in words
    for verdict in ("right item at place 2", "right at first place", "right item at place 17"):
        assert verdict in words
    assert "not among the first 1" in words


def test_empty_parts_are_left_out(tmp_path: Path) -> None:
    page = _Page(write_report(tmp_path / "r.html", title="Empty").read_text())
    assert not page.all("section") and not page.all("nav") and not page.all("img")
    assert list(tmp_path.iterdir()) == [tmp_path / "r.html"]


def test_data_uri_of_every_kind_of_image(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "p.png")
    same = data_uri(PICTURE)
    assert same == data_uri(tmp_path / "p.png") == data_uri(np.asarray(PICTURE))
    figure = plot_edits({"a": {"k": 0.5}})
    assert data_uri(figure) == data_uri(png(figure))
    large = base64.b64decode(data_uri(Image.new("L", (2000, 1000))).split(",")[1])
    with Image.open(io.BytesIO(large)) as picture:
        assert picture.size == (480, 240) and picture.format == "JPEG"
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.jpg can't be read"):
        data_uri(tmp_path / "broken.jpg")
