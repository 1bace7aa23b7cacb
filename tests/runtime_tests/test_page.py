"""The page at / in a real browser: keys, streams side by side, strengths, the keyboard."""

import base64
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.until import until

CHROMIUM = shutil.which("chromium")
KEY = "user-0123456789"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


class Tab:
    """A tab of a headless Chromium, spoken to over its own debugging protocol."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._count = 0
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> Any:
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=120))
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(json.dumps(message["params"]))
            if message.get("id") == self._count:
                assert "error" not in message, message
                return message["result"]

    def run(self, script: str) -> Any:
        """The value of an expression."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def text(self, selector: str) -> str:
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def press(self, key: str, *, modifiers: int = 0) -> None:
        """A key; `modifiers` 2 is Ctrl."""
        code, text = {"Enter": (13, "\r"), "Escape": (27, "")}[key]
        more = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **more)
        self.send("Input.dispatchKeyEvent", type="keyUp", **more)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.send("Input.insertText", text=text)

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)

    def resize(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def screenshot(self, path: Path) -> None:
        image = self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(image))


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    with _chromium(tmp_path / "profile") as port:
        page = httpx.put(f"http://127.0.0.1:{port}/json/new?about:blank").json()
        with connect(page["webSocketDebuggerUrl"], max_size=None) as socket:
            yield Tab(socket)


@contextmanager
def _chromium(profile: Path) -> Iterator[int]:
    args = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    args += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        [str(CHROMIUM), *args],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        note = profile / "DevToolsActivePort"
        until(lambda: note.is_file() and note.read_text().count("\n"))
        yield int(note.read_text().splitlines()[0])
    finally:
        # Its children too: they are a group of their own.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # What it leaves where temporary files lie, then.
        with suppress(FileNotFoundError):
            shutil.rmtree((profile / "SingletonSocket").readlink().parent)


def answers(tab: Tab) -> dict[str, str]:
    script = (
        "Object.fromEntries([...document.querySelectorAll('article')].map("
        "(a) => [a.dataset.model, a.querySelector('.answer').textContent]))"
    )
    found: dict[str, str] = tab.run(script)
    return found


def ready(tab: Tab) -> bool:
    return bool(tab.run("document.querySelector('#ask')?.hidden === false"))


def answered(tab: Tab) -> bool:
    return tab.text("#status") == "All answers are there."


def screenshots(tab: Tab, name: str) -> None:
    """For people to look at, where CI or a person asks for them."""
    if folder := os.environ.get("SCREENSHOTS"):
        tab.screenshot(Path(folder) / f"{name}.png")


def test_base_and_adapters_answer_side_by_side(world: Any, server: Any, tab: Tab) -> None:
    tab.resize(1280, 900)
    tab.open(server.url)
    until(lambda: ready(tab))

    tab.type("why")
    tab.run("document.querySelector('#tokens').value = 24")
    tab.press("Enter", modifiers=2)
    until(lambda: answered(tab))

    assert answers(tab) == {
        "tiny": world.answer("why", None, 24),
        "small": world.answer("why", "small", 24),
        "large": world.answer("why", "large", 24),
    }
    assert "tokens/s" in tab.text("article[data-model=large] .speed")
    assert tab.errors == []
    screenshots(tab, "answers")
    tab.resize(400, 900)
    screenshots(tab, "narrow")
    assert tab.run("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_strength_is_sent_and_shown(world: Any, server: Any, tab: Tab) -> None:
    tab.open(server.url)
    until(lambda: ready(tab))

    tab.run("document.querySelectorAll('.choice')[1].box.click()")
    tab.run("document.querySelectorAll('.choice')[0].strength.value = 0")
    tab.run("document.querySelector('#tokens').value = 24")
    tab.type("why")
    tab.press("Enter", modifiers=2)
    until(lambda: answered(tab))

    base = world.answer("why", None, 24)
    assert answers(tab) == {"tiny": base, "small": base}
    tab.run("document.querySelector('article[data-model=small] summary').click()")
    assert "strength\n0" in tab.text("article[data-model=small] dl")


def test_any_strength_and_temperature_can_be_asked_with(server: Any, tab: Tab) -> None:
    tab.open(server.url)
    until(lambda: ready(tab))

    tab.run("document.querySelectorAll('.choice')[0].strength.value = 0.333")
    tab.run("document.querySelector('#temperature').value = 0.75")
    tab.run("document.querySelector('#tokens').value = 3")
    tab.type("why")
    tab.press("Enter", modifiers=2)

    until(lambda: answered(tab))
    tab.run("document.querySelector('article[data-model=small] summary').click()")
    assert "strength\n0.333" in tab.text("article[data-model=small] dl")


@pytest.mark.slow
def test_the_page_works_by_keyboard_with_a_key(
    endless: Path, start_server: Callable[..., Any], tab: Tab, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text(f"{KEY}\n")
    args = ["--model_name", "tiny", "--model_dir", str(endless), "--max_new_tokens_limit", "999999"]
    args += ["--max_batch_rows", "1", "--api_keys", str(tmp_path / "keys")]
    with start_server(*args) as server:
        server.wait_until_ready()
        tab.open(server.url)
        until(lambda: tab.run("document.activeElement?.id === 'key'"))
        screenshots(tab, "key")
        tab.type("wrong-0123456789")
        tab.press("Enter")
        until(lambda: "not known" in tab.text("#notice"))
        tab.type(KEY)
        tab.press("Enter")
        until(lambda: ready(tab))
        with occupied(server.url):
            tab.type("why")
            tab.press("Enter", modifiers=2)
            until(lambda: tab.text("article .speed") == "waiting…")
            tab.press("Escape")
            until(lambda: tab.text("#status") == "Stopped.")

    assert tab.text("article .speed") == "waiting… · stopped"


@contextmanager
def occupied(url: str) -> Iterator[None]:
    """The server's only place taken by an answer without end."""
    body = {"model": "tiny", "prompt": "a", "max_tokens": 900_000, "stream": True}
    headers = {"Authorization": f"Bearer {KEY}"}
    request = httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers, timeout=30)
    with request as answer:
        lines = answer.iter_lines()
        next(lines)
        yield


def test_a_model_card_is_text_whatever_it_holds(
    server: Any, tab: Tab, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "carded", r=2, target_modules=["q_proj"])
    evil = "# Support\n<script>document.title = 'evil'</script><img src=x onerror=alert(1)>"
    (folder / "README.md").write_text(evil)
    body = {"name": "carded", "source": folder.as_uri()}
    httpx.post(f"{server.url}/v1/adapters", json=body, timeout=30).raise_for_status()
    try:
        tab.open(server.url)
        until(lambda: ready(tab))
        tab.run("document.querySelector('#tokens').value = 3")
        tab.type("why")
        tab.press("Enter", modifiers=2)
        until(lambda: answered(tab))
        tab.run("document.querySelector('article[data-model=carded] summary').click()")
        until(lambda: "Support" in tab.text("article[data-model=carded] pre"))
    finally:
        httpx.delete(f"{server.url}/v1/adapters/carded", timeout=30)

    assert tab.text("article[data-model=carded] pre") == evil
    assert tab.run("document.title") == "Compare adapters"


def test_no_more_than_three_adapters_are_asked(world: Any, server: Any, tab: Tab) -> None:
    def boxes(what: str) -> list[bool]:
        return list(tab.run(f"[...document.querySelectorAll('.choice')].map((c) => c.box.{what})"))

    source = world.adapters["small"].as_uri()
    for name in ("third", "fourth"):
        body = {"name": name, "source": source}
        httpx.post(f"{server.url}/v1/adapters", json=body, timeout=30).raise_for_status()
    try:
        tab.open(server.url)
        until(lambda: ready(tab))
        full = boxes("checked"), boxes("disabled")
        tab.run("document.querySelectorAll('.choice')[0].box.click()")
        free = boxes("disabled")
    finally:
        for name in ("third", "fourth"):
            httpx.delete(f"{server.url}/v1/adapters/{name}", timeout=30)

    assert full == ([True, True, True, False], [False, False, False, True])
    assert free == [False] * 4


def test_the_page_may_load_nothing_from_elsewhere(server: Any) -> None:
    answer = httpx.get(server.url)

    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; connect-src 'self'")
    assert "unsafe" not in policy
    assert "http://" not in answer.text
    assert "https://" not in answer.text
