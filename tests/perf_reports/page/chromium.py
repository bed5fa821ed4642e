"""A headless Chromium, driven through ChromeDriver by plain HTTP (https://www.w3.org/TR/webdriver2)."""

import base64
import contextlib
import json
import shutil
import subprocess
import urllib.request


def missing():
    """The reason why there is no browser to test in; "" where there is one."""
    absent = [name for name in ("chromedriver", "chromium") if shutil.which(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else ""


class Browser:
    """One session of a browser."""

    def __init__(self, address, profile):
        self.address = address
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        flags += [
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            f"--user-data-dir={profile}",
        ]
        wanted = {
            "goog:chromeOptions": {"binary": shutil.which("chromium"), "args": flags},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        self.session = self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def _send(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def command(self, path, body):
        return self._send("POST", f"/session/{self.session}/{path}", body)

    def devtools(self, command, **parameters):
        return self.command("goog/cdp/execute", {"cmd": command, "params": parameters})

    def open(self, path, width, height=844, dark=False, media=""):
        """Show a file in a window of this width."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.devtools("Emulation.setEmulatedMedia", media=media, features=scheme)
        self.command("url", {"url": path.as_uri()})

    def run(self, script):
        """What a function body returns."""
        return self.command("execute/sync", {"script": script, "args": []})

    def log(self, kind):
        """The messages since the last call: of the console ("browser"), or of the network ("performance")."""
        return self.command("se/log", {"type": kind})

    def screenshot(self, path, top=0, height=None):
        """Write a part of the page as PNG."""
        width = self.run("return innerWidth")
        clip = {
            "x": 0,
            "y": top,
            "width": width,
            "height": height or self.run("return document.body.scrollHeight"),
            "scale": 1,
        }
        picture = self.devtools("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))

    def close(self):
        self._send("DELETE", f"/session/{self.session}")


@contextlib.contextmanager
def browser(profile):
    """A Browser with an empty profile, ended with its driver."""
    driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        port = next(line for line in driver.stdout or () if "successfully on port" in line).split()[-1].rstrip(".")
        session = Browser(f"http://127.0.0.1:{port}", profile)
        try:
            yield session
        finally:
            session.close()
    finally:
        driver.terminate()
        driver.communicate()
