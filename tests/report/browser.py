"""Debian's Chromium, driven by selenium; nothing is downloaded and nothing but files is opened."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


class Browser:
    """A Chromium with a profile of its own.

    Args:
        folder: of profile and downloads.
    """

    def __init__(self, folder: Path) -> None:
        programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
        if None in programs:
            pytest.skip("no chromium and chromedriver here (Debian: apt install chromium chromium-driver)")
        options = webdriver.ChromeOptions()
        options.binary_location = str(programs[0])
        for flag in (*_FLAGS, f"--user-data-dir={folder / 'profile'}", "--window-size=1200,900"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(str(programs[1])))
        self.downloads = folder / "downloads"
        self.downloads.mkdir()
        self.driver.execute_cdp_cmd(
            "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(self.downloads)}
        )

    def open(self, page: Path, address: str = "") -> None:
        """Open a page, at an address inside it, with nothing remembered of earlier visits."""
        self.driver.get(page.as_uri())
        self.js("localStorage.clear()")
        self.driver.get("about:blank")
        self.logs()
        self.driver.get(page.as_uri() + address)

    @contextmanager
    def scheme(self, name: str) -> Iterator[None]:
        """With the colours of `light` or `dark`."""
        self._emulate("EmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": name}]})
        try:
            yield
        finally:
            self._emulate("EmulatedMedia", {"features": []})

    @contextmanager
    def phone(self, width: int = 390) -> Iterator[None]:
        """On a screen of a phone's size."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        self._emulate("DeviceMetricsOverride", size)
        try:
            yield
        finally:
            self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def _emulate(self, what: str, values: dict[str, Any]) -> None:
        self.driver.execute_cdp_cmd(f"Emulation.set{what}", values)

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def click(self, element: WebElement) -> None:
        """A real click, once the element is in sight."""
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.js(
            "return [...document.querySelectorAll(arguments[0])].map(node => node.textContent)", selector
        )
        return found

    def logs(self) -> tuple[list[str], set[str]]:
        """Lines of the console, and schemes of all requests since the last call."""
        console = [entry["message"] for entry in self.driver.get_log("browser")]
        schemes = set()
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                schemes.add(urlsplit(message["params"]["request"]["url"]).scheme)
        return console, schemes

    def downloaded(self) -> bytes:
        """The one file that was downloaded; it is removed."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            files = [path for path in self.downloads.glob("*.csv") if path.stat().st_size]
            if files and not any(self.downloads.glob("*.crdownload")):
                content = files[0].read_bytes()
                files[0].unlink()
                return content
            time.sleep(0.02)
        raise AssertionError("nothing was downloaded")
