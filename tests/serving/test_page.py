"""The page, in a browser: what it shows, by keyboard alone, on a phone, in the dark."""

import re
import shutil
import threading

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

QUESTION = "who is <b>bedda</b> daba ?"


@pytest.fixture(scope="module")
def browser():
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are absent")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


def wait(browser, condition):
    return WebDriverWait(browser, 20, 0.05).until(lambda _: condition())


def open_page(browser, http):
    browser.get(http.url + "/")
    wait(browser, lambda: browser.switch_to.active_element.get_attribute("id") == "question")


def shown(browser, name):
    return browser.find_element(By.ID, name).text


def resize(browser, width, dark=False):
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def test_a_question_by_keyboard(http, service, browser, monkeypatch):
    held, first = threading.Event(), threading.Event()
    original = service.batcher._add

    def slow(*args):
        original(*args)
        if first.is_set():
            held.wait(20)
        first.set()

    resize(browser, 1280)
    open_page(browser, http)
    monkeypatch.setattr(service.batcher, "_add", slow)
    browser.switch_to.active_element.send_keys(QUESTION, Keys.ENTER)
    answer = browser.find_element(By.ID, "answer")
    wait(browser, lambda: answer.text)  # while the rest is still to come
    assert answer.get_attribute("aria-busy") == "true" and answer.get_attribute("aria-live")
    assert shown(browser, "go") == "Stop" and shown(browser, "status") == "reading …"
    part = answer.text
    held.set()
    wait(browser, lambda: answer.get_attribute("aria-busy") == "false")
    whole = http("/v1/ask", {"question": QUESTION, "words": True})[2]
    assert (
        answer.text == whole["answer"] and whole["answer"].startswith(part) and part != answer.text
    )
    assert "s to the first word" in shown(browser, "status") and shown(browser, "go") == "Ask"
    items = browser.find_elements(By.CSS_SELECTOR, "#documents > li")
    for item, document in zip(items, whole["documents"], strict=True):
        assert document["id"] in item.text and f"{document['score']:.3f}" in item.text
        assert document["text"][:50] in item.text
    shown_rate = float(re.search(r"([\d.]+)× compressed", shown(browser, "compression"))[1])
    assert shown_rate == pytest.approx(whole["compression"]["rate"], abs=0.051)
    words = browser.find_elements(By.CSS_SELECTOR, "#words li")
    assert [word.text.split(",")[0].strip() for word in words] == [
        w["text"] for w in whole["words"]
    ]
    marked = ["new" in word.get_attribute("class").split() for word in words]
    assert marked == [w["in_documents"] for w in whole["words"]]
    # The next question: slash comes back, and Tab reaches button and options.
    browser.find_element(By.CSS_SELECTOR, "#documents summary").send_keys("/")
    assert browser.switch_to.active_element.get_attribute("id") == "question"
    browser.switch_to.active_element.send_keys(Keys.TAB)
    assert browser.switch_to.active_element.get_attribute("id") == "go"
    browser.switch_to.active_element.send_keys(Keys.TAB)
    assert browser.switch_to.active_element.tag_name == "summary"
    for field in browser.find_elements(By.TAG_NAME, "input"):
        assert browser.execute_script("return arguments[0].labels.length", field) == 1
    assert not [e for e in browser.get_log("browser") if e["level"] == "SEVERE"]


def test_escape_stops_and_errors_are_told(http, service, browser, monkeypatch):
    open_page(browser, http)
    held, original = threading.Event(), service.corpus.find
    monkeypatch.setattr(service.corpus, "find", lambda *a: (held.wait(20), original(*a))[1], False)
    browser.switch_to.active_element.send_keys("who ?", Keys.ENTER)
    wait(browser, lambda: shown(browser, "status") == "searching …")
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    wait(browser, lambda: shown(browser, "status") == "stopped")
    held.set()
    browser.switch_to.active_element.send_keys(" who ?" * 200, Keys.ENTER)
    wait(browser, lambda: "tokens too long" in shown(browser, "status"))
    assert "bad" in browser.find_element(By.ID, "status").get_attribute("class").split()


@pytest.mark.parametrize("dark", [False, True])
def test_phones_and_the_dark(http, browser, dark):
    resize(browser, 390, dark)
    open_page(browser, http)
    browser.switch_to.active_element.send_keys(QUESTION, Keys.ENTER)
    wait(browser, lambda: "in all" in shown(browser, "status"))
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= 390
    colour = "return getComputedStyle(document.body).%s.match(/\\d+/g).map(Number)"
    ground = sum(browser.execute_script(colour % "backgroundColor"))
    ink = sum(browser.execute_script(colour % "color"))
    assert (ground < 150 and ink > 600) if dark else (ground > 600 and ink < 150)


def test_the_token_is_asked_for(service, running, browser):
    http = running(service, "secret")
    open_page(browser, http)
    browser.switch_to.active_element.send_keys("who ?", Keys.ENTER)
    wait(browser, lambda: "bearer token" in shown(browser, "status"))
    assert browser.switch_to.active_element.get_attribute("id") == "token"
    browser.switch_to.active_element.send_keys("secret", Keys.ENTER)
    wait(browser, lambda: "in all" in shown(browser, "status"))
