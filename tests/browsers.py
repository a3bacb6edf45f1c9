"""The browser that tests and pictures of pages use."""

import shutil

FLAGS = ["--no-sandbox", "--disable-gpu", "--in-process-gpu", "--disable-dev-shm-usage"]


def chromium() -> str | None:
    """A browser of the system, where playwright has none of its own."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
