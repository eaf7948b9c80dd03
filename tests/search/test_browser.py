"""The page in the system's Chromium, as a person uses it, by keyboard, too.

Driven by Playwright: it waits for what it clicks, takes files and downloads without a dialogue, and speaks to
the Chromium that is there.  Selenium would need a driver of the very version of that Chromium beside it.
"""

import json
import re
import shutil
import signal
import subprocess
import sys

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.search import served

pytestmark = pytest.mark.slow
WAIT = 60_000  # milliseconds; a busy machine needs them


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    return served.gallery(tmp_path_factory.mktemp("browser"))[1]


@pytest.fixture(scope="module")
def address(gallery):
    """The server as its command starts it, on a free port, and ends by Ctrl-C."""
    command = [sys.executable, "-m", "stages.search", "serve", gallery.path, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        found = re.match(r"(http://127\.0\.0\.1:\d+) searches the pictures of ", line)
        assert found, line + process.stderr.read()
        yield found[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, process.stderr.read()


@pytest.fixture(scope="module")
def chromium():
    path = shutil.which("chromium")
    assert path, "no chromium: apt-get install -y --no-install-recommends chromium"
    with sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=path, args=["--no-sandbox"])  # root has no sandbox


@pytest.fixture
def page(chromium, address):
    """The page of the gallery; a request to elsewhere, an error in it and what the policy blocks all fail."""
    faults = []
    with chromium.new_context(viewport={"width": 1280, "height": 900}) as context:
        context.set_default_timeout(WAIT)
        page = context.new_page()
        page.on("request", lambda request: request.url.startswith(address) or faults.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: is_fault(message) and faults.append(message.text))
        page.goto(address)
        expect(hits(page)).to_have_count(16, timeout=WAIT)
        yield page
        assert faults == []


def is_fault(message):
    return message.type == "error" and "status of 400" not in message.text  # a refusal, which the page shows


def hits(page):
    return page.locator("#hits > li")


def person(page, n=0):
    """The person on the n-th picture, by its name."""
    return hits(page).nth(n).locator("bdi").inner_text()[0]


def drop(page, data):
    """A file that is let go over the page."""
    transfer = page.evaluate_handle(
        """bytes => { const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(bytes)], "someone.jpg")); return transfer; }""",
        list(data),
    )
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})


def test_a_picture_is_dropped_searched_on_restricted_and_downloaded(page, gallery):
    drop(page, (gallery.root / gallery.names[5]).read_bytes())
    expect(page.locator("#status")).to_have_text("Nearest pictures: 1 to 16 of 16", timeout=WAIT)
    expect(page.locator("#query img")).to_have_attribute("alt", re.compile("Your picture"))
    assert person(page) == gallery.names[5].split("/")[-1][0]

    hits(page).nth(1).locator("a").click()  # searches from it, and does not find it
    expect(page.locator("#status")).to_have_text("Nearest pictures: 1 to 15 of 15", timeout=WAIT)
    page.get_by_role("button", name="legs").click()
    expect(page.get_by_role("button", name="legs")).to_have_attribute("aria-pressed", "true")
    page.get_by_text("Choose parts").click()
    expect(page.get_by_label("left leg")).to_be_checked()
    expect(page.get_by_label("torso")).not_to_be_checked()

    page.wait_for_load_state("networkidle")
    with page.expect_download() as download:
        page.get_by_role("link", name="JSON").click()
    answer = json.loads(download.value.path().read_bytes())
    legs = ["left leg", "right leg", "left foot", "right foot"]
    rows = gallery.nearest(gallery.embedding([answer["query"]["row"]]), 16, parts=legs)[1][0].tolist()
    assert [hit["row"] for hit in answer["hits"]] == [row for row in rows if row != answer["query"]["row"]]
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    assert download.value.path().read_text().startswith("rank,distance,name")

    page.go_back()  # the address is the state
    expect(page.get_by_role("button", name="all", exact=True)).to_have_attribute("aria-pressed", "true")


def test_pages_and_filters(page):
    page.evaluate("location.hash = 'row=0&offset=10'")
    expect(page.locator("#status")).to_have_text("Nearest pictures: 11 to 15 of 15", timeout=WAIT)
    expect(page.get_by_role("button", name="Next")).to_be_disabled()
    page.get_by_role("button", name="Previous").click()
    expect(page.locator("#status")).to_have_text("Nearest pictures: 1 to 15 of 15", timeout=WAIT)
    page.get_by_label("Camera").select_option("1")
    expect(page.locator("#status")).to_have_text("Nearest pictures: 1 to 8 of 8", timeout=WAIT)
    page.get_by_label("Folder").fill("hall")
    page.get_by_label("Folder").press("Enter")
    expect(page.locator("#status")).to_have_text("Nearest pictures: none of 0", timeout=WAIT)
    page.get_by_role("button", name="Back to all pictures").click()
    expect(page.locator("#status")).to_have_text("Pictures: none of 0", timeout=WAIT)


def test_the_keyboard_searches_and_re_ranks(page):
    link = hits(page).nth(3).locator("a")
    link.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Nearest pictures: 1 to 15 of 15", timeout=WAIT)
    page.get_by_label("Re-rank").focus()
    page.keyboard.press("Space")
    expect(page).to_have_url(re.compile("rerank=true"))
    expect(page.locator("#error")).to_be_hidden()


def test_an_error_is_shown_in_words(page):
    page.evaluate("location.hash = 'row=0&part=tail'")
    expect(page.get_by_role("alert")).to_contain_text("tail: no such part", timeout=WAIT)


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_window_and_everything_has_a_name(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    hits(page).first.locator("a").click()
    expect(page.locator("#status")).to_have_text("Nearest pictures: 1 to 15 of 15", timeout=WAIT)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    unnamed = "[...document.querySelectorAll('input, select')].filter(box => !box.labels.length).length"
    assert page.evaluate(unnamed) == 0
    assert page.evaluate("[...document.images].filter(i => !i.hasAttribute('alt')).length") == 0
