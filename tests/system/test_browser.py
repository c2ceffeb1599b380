"""DIR/report/index.html in headless Chromium: it renders, asks for nothing, and is usable by keyboard and by a screen reader."""

import base64
import io
import json
from importlib import resources

import numpy as np
import pytest
from page_fakes import examples, result, write_run
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from bacl_jax.config import Config
from bacl_jax.eval import page

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")  # root has no sandbox
PHONE, DESK = 360, 1200


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    first, second = write_run(runs / "a<i>run"), write_run(runs / ("other" * 20), Config(seed=3))
    result(second, 60, "retrieval", {"i2t_R@1": 95.0})
    return page.write(first, examples(), [second]).as_uri()


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


@pytest.fixture
def show(browser, url):
    def show(width=DESK, theme="light"):
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width == PHONE}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"prefers-color-scheme": theme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in media.items()]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(url)
        return browser

    return show


def screenshot(browser):
    found = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": False})
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found["data"]))).convert("L"))


def press(browser, *keys):
    ActionChains(browser).send_keys(*keys).perform()


def focused(browser):
    return browser.switch_to.active_element


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_it_renders_without_an_error_or_a_request(show, url, width, theme):
    browser = show(width, theme)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert {one for one in asked if not one.startswith("data:")} == {url}
    pixels = screenshot(browser)
    ground = np.median(pixels)
    assert ground > 240 if theme == "light" else ground < 40
    assert np.abs(pixels - ground).max() > 150
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    broken = "return [...document.images].filter((image) => !image.complete || !image.naturalWidth).length"
    assert browser.execute_script(broken) == 0
    assert browser.execute_script("return [...document.images].filter((image) => !image.alt).length") == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_axe_finds_nothing(show, width, theme):
    browser = show(width, theme)
    browser.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    browser.execute_script((resources.files("axe_playwright_python") / "axe.min.js").read_text())
    browser.set_script_timeout(120)
    found = browser.execute_async_script("const done = arguments[0]; axe.run().then(done, (error) => done({failed: String(error)}))")
    assert "failed" not in found
    assert len(found["passes"]) > 20
    assert [(one["id"], [node["target"] for node in one["nodes"]][:3]) for one in found["violations"]] == []


def test_the_keyboard_goes_through_the_page_in_its_order(show):
    browser = show()
    press(browser, Keys.TAB)
    skip = focused(browser)
    assert skip.text == "Skip to content"
    assert skip.rect["x"] >= 0
    press(browser, Keys.ENTER)
    assert focused(browser).get_attribute("id") == "main"
    browser = show()
    wanted = browser.find_elements(By.CSS_SELECTOR, "a, button, summary, [tabindex='0']")
    wanted = [one for one in wanted if one.is_displayed() or one.get_attribute("class") == "skip"]
    for one in wanted:
        press(browser, Keys.TAB)
        assert focused(browser) == one, (one.get_attribute("outerHTML")[:99], focused(browser).get_attribute("outerHTML")[:99])
        assert one.value_of_css_property("outline-style") != "none"
    assert len(wanted) > 50


def test_values_are_read_by_arrow_keys_and_by_pointing(show):
    browser = show()
    (chart,) = browser.find_elements(By.CSS_SELECTOR, "[data-chart='training-0']")
    plot, readout = (chart.find_element(By.CSS_SELECTOR, f".{name}") for name in ("plot", "readout"))
    assert readout.text == "Step 60. total: 0.08333; contrastive: 0.06667"
    plot.click()
    press(browser, Keys.HOME)
    assert readout.text == "Step 1. total: 5; contrastive: 4"
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert readout.text == "Step 3. total: 1.667; contrastive: 1.333"
    press(browser, Keys.END)
    assert readout.text.startswith("Step 60. ")
    ActionChains(browser).move_to_element_with_offset(plot, -plot.size["width"] // 8, 0).perform()
    assert 15 < int(readout.text.split()[1].rstrip(".")) < 22


def test_lines_are_hidden_and_steps_laid_out_by_buttons(show):
    browser = show()
    (chart,) = browser.find_elements(By.CSS_SELECTOR, "[data-chart='training-0']")
    total = chart.find_element(By.CSS_SELECTOR, "path[data-line='0']")
    button, log = (chart.find_element(By.CSS_SELECTOR, f"button[{name}]") for name in ("data-line='0'", "data-log"))
    browser.execute_script("arguments[0].focus()", button)
    press(browser, Keys.SPACE)
    assert button.get_attribute("aria-pressed") == "false"
    assert not total.is_displayed()
    chart.find_element(By.CSS_SELECTOR, ".plot").click()
    press(browser, Keys.END)
    assert chart.find_element(By.CSS_SELECTOR, ".readout").text == "Step 60. contrastive: 0.06667"
    button.click()
    assert total.is_displayed()
    before = total.get_attribute("d")
    log.click()
    assert (log.get_attribute("aria-pressed"), total.get_attribute("d")) == ("true", total.get_attribute("data-log"))
    shown = [one.get_attribute("data-scale") for one in chart.find_elements(By.CSS_SELECTOR, "[data-scale]") if one.is_displayed()]
    assert shown == ["log"]
    log.click()
    assert total.get_attribute("d") == before


def test_it_prints(show):
    pdf = show().execute_cdp_cmd("Page.printToPDF", {})["data"]
    assert base64.b64decode(pdf).startswith(b"%PDF")
