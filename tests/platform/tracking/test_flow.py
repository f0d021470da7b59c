"""The picture of a stream from which parts leave."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from mixtura.platform.tracking.flow import Branch, flow_svg

SVG = "{http://www.w3.org/2000/svg}"
BRANCHES = [Branch("</text><script>", 50, "half", "lost"), Branch("cut", 20, "", "cut"), Branch("left", 30, "", "kept")]


def points(path: ET.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path.attrib["d"])]


def test_the_stream_is_as_wide_as_what_is_left_in_it() -> None:
    [trunk, *bands] = ET.fromstring(flow_svg(BRANCHES, 'a "title"', 1000)).findall(f"{SVG}path")
    assert [x for x, _ in points(trunk)] == [0, 270, 270, 135, 135, 81, 81, 0, 0, 0]
    thick = [band[1][1] - band[2][1] for band in map(points, bands)]
    assert thick == [135, 54, 81]
    assert [band.attrib["class"] for band in bands] == ["lost", "cut", "kept"]


def test_labels_are_escaped_and_have_their_shares() -> None:
    picture = ET.fromstring(flow_svg(BRANCHES, 'a "title"', 360))
    assert [label.text for label in picture.findall(f"{SVG}text")][:3] == ["</text><script>", "50.00%: half", "cut"]
    assert picture.attrib["aria-label"] == 'a "title"'


def test_everything_lies_inside_the_picture() -> None:
    picture = ET.fromstring(flow_svg(BRANCHES, "", 360))
    height = float(picture.attrib["height"])
    assert all(y <= height and x <= 360 for path in picture.findall(f"{SVG}path") for x, y in points(path))
    assert all(0 < float(label.attrib["y"]) < height for label in picture.findall(f"{SVG}text"))


def test_an_empty_stream_is_drawn_too() -> None:
    assert ET.fromstring(flow_svg([Branch("left", 0, "", "kept")], "", 360)).tag == f"{SVG}svg"
