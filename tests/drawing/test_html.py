"""Pages in one file."""

import pytest

from pipeline.data import parts
from pipeline.drawing import html
from pipeline.drawing.html import Markup, Section


def test_text_is_escaped_and_markup_is_not():
    table = html.table(["a<b", Markup("<b>c</b>")], [["x & y", Markup("<i>1</i>")]])
    assert "<th>a&lt;b</th>" in table and '<th class="n"><b>c</b></th>' in table
    assert "<td>x &amp; y</td>" in table and '<td class="n"><i>1</i></td>' in table


@pytest.mark.parametrize("row", [["one"], ["one", 2, 3]])
def test_a_row_has_a_cell_for_each_heading(row):
    with pytest.raises(ValueError, match="zip"):
        html.table(["name", "value"], [row])


def test_a_page_links_to_its_sections():
    sections = [Section("Where & why", "a < b", "<p>content</p>"), Section("Last", "", "")]
    page = html.document("a & b", "<h1>head</h1>", sections, ".own {}", "const own = 1;")
    assert "<title>a &amp; b</title>" in page and ".own {}" in page and "<script>const own = 1;" in page
    assert '<a href="#where-why">Where &amp; why</a>' in page and '<section id="where-why">' in page
    assert "a &lt; b" in page and "<p>content</p>" in page
    assert "<script" not in html.document("a", "", sections)


def test_a_picture_lies_in_the_page_and_says_what_it_shows():
    figure = html.picture(b"PNG", "png", 'a "b"', 70, "<b>caption</b>", "yes")
    assert 'src="data:image/png;base64,UE5H"' in figure and 'alt="a &quot;b&quot;"' in figure
    assert '<figure class="yes"' in figure and "<figcaption><b>caption</b></figcaption>" in figure
    assert "figcaption" not in html.picture(b"PNG", "png", "a", 70)


def test_every_part_has_its_colour_in_the_legend():
    assert all(f"</i>{name}</span>" in html.legend() for name in parts.FINE)
