"""A browser for the tests of the page: the machine's chromium, else playwright's own.

python tests/space/browsing.py    install one where that is possible; never fails
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 600
"""An installation that takes longer than this is given up."""


def find_browser() -> str | None:
    """Path of a browser that playwright can drive; None where there is none."""
    chosen = os.environ.get("SPAFIT_BROWSER")
    if chosen:
        return chosen
    own = next((path for name in NAMES if (path := shutil.which(name))), None)
    if own is not None:
        return own
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).is_file() else None


def install() -> str:
    """Install a browser, if there is none yet. Returns what came of it, in words."""
    found = find_browser()
    if found is not None:
        return f"browser: {found}"
    failures = []
    for command in _commands():
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            failures.append(str(error))
            continue
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            failures.append(f"{' '.join(command[:3])}: {lines[-1]}")
        elif (found := find_browser()) is not None:
            return f"browser: {found}"
    return f"no browser, so the tests of the page in one are skipped ({'; '.join(failures) or 'no way to install'})"


def _commands() -> list[list[str]]:
    commands = []
    if os.name == "posix" and os.geteuid() == 0 and shutil.which("apt-get"):
        quick = ["-qq", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20"]
        commands.append(["apt-get", "update", *quick])
        commands.append(["apt-get", "install", "-y", "--no-install-recommends", "chromium", *quick])
    commands.append([sys.executable, "-m", "playwright", "install", "chromium"])
    return commands


if __name__ == "__main__":
    print(install())
