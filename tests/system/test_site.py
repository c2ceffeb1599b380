"""The documents' site as `make docs` builds it, in headless Chromium: no broken link, no error, no request to another host, and pages for
phones and screen readers."""

import functools
import http.server
import os
import subprocess
import sys
import threading
import urllib.parse
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

ROOT = Path(__file__).parents[2]
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")  # root has no sandbox
PAGES = sorted(path.stem for path in (ROOT / "docs").glob("*.md"))
PHONE, DESK = 390, 1280


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def address(site):
    """Of a server: search reads its index by a request, which a browser refuses for files."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def show(browser, address):
    def show(page, width=DESK, theme="light"):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]})
        browser.get(f"{address}{page}.html")
        return browser

    return show


class Page(HTMLParser):
    """Targets of the links and sources of the pictures, scripts and styles of a page, and the ids that can be linked to."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.ids = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids.add(found.get("id"))
        self.targets |= {found[name] for name in ("href", "src") if found.get(name)}


def test_no_link_is_broken(site):
    paths = [path for path in site.glob("*.html") if path.name != "404.html"]  # which a server shows wherever it is asked for nothing
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in paths}
    assert {path.stem for path in pages} >= set(PAGES)
    for path, page in pages.items():
        for target in page.targets:
            url = urllib.parse.urlsplit(target)
            if url.scheme:
                continue
            file = (path.parent / urllib.parse.unquote(url.path)).resolve() if url.path not in ("", ".") else path
            file = file / "index.html" if file.is_dir() else file
            assert file.is_file(), f"{path.name}: {target}"
            if url.fragment and file in pages:
                assert urllib.parse.unquote(url.fragment) in pages[file].ids | {"__skip"}, f"{path.name}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_whole_on_any_width_and_axe_finds_nothing(show, address, page):
    for width, theme in ((PHONE, "light"), (DESK, "dark")):
        browser = show(page, width, theme)
        assert browser.get_log("browser") == []
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        broken = "return [...document.images].filter((image) => !image.complete || !image.naturalWidth || !image.alt).length"
        assert browser.execute_script(broken) == 0
        asked = browser.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
        assert [one for one in asked if not one.startswith(address)] == []
        browser.execute_script((resources.files("axe_playwright_python") / "axe.min.js").read_text())
        browser.set_script_timeout(120)
        axe = "const done = arguments[0]; axe.run(document, {preload: false}).then(done, (error) => done({failed: String(error)}))"
        found = browser.execute_async_script(axe)
        assert "failed" not in found
        assert [(one["id"], [node["target"] for node in one["nodes"]][:3]) for one in found["violations"]] == []


def test_search_finds_a_page(show):
    browser = show("index")
    browser.find_element(By.CSS_SELECTOR, "[data-md-component='search-query']").send_keys("curriculum")
    WebDriverWait(browser, 30).until(lambda one: one.find_elements(By.CSS_SELECTOR, ".md-search-result__link"))
