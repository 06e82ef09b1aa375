"""A headless Chromium, driven by the DevTools protocol over a pipe: nothing but Python's own library."""
import base64
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find():
    for name in NAMES:
        if shutil.which(name):
            return name
    return None


class Browser:
    def __init__(self, program, timeout=120):
        self.profile = tempfile.TemporaryDirectory(prefix="chromium-")
        to_read, to_write = os.pipe()
        from_read, from_write = os.pipe()

        def connect():
            # The browser reads commands from descriptor 3 and answers on 4. The ends may have these numbers already.
            reader, writer = os.dup(to_read), os.dup(from_write)
            os.dup2(reader, 3)
            os.dup2(writer, 4)

        self.process = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
             f"--user-data-dir={self.profile.name}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=connect, close_fds=False,
            start_new_session=True)
        os.close(to_read)
        os.close(from_write)
        self.to = os.fdopen(to_write, "wb", buffering=0)
        self.answers = os.fdopen(from_read, "rb")
        self.number = 0
        self.events = []
        self.session = None
        signal.signal(signal.SIGALRM, lambda *_: self.kill())
        signal.alarm(timeout)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(domain + ".enable")

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)

    def close(self):
        signal.alarm(0)
        self.kill()
        self.process.wait()
        self.to.close()
        self.answers.close()
        self.profile.cleanup()

    def receive(self):
        text = bytearray()
        while True:
            byte = self.answers.read(1)
            if not byte:
                raise RuntimeError("the browser has ended")
            if byte == b"\0":
                return json.loads(text)
            text += byte

    def call(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.to.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            if "method" in answer:
                self.events.append(answer)

    def open(self, file, width, dark=False, scripts=True):
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.call("Page.navigate", url=pathlib.Path(file).resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())

    def evaluate(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def complaints(self):
        """Errors and warnings, and whatever was fetched besides the page itself."""
        found = []
        for event in self.events:
            parameters = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(parameters["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled":
                found.append(json.dumps(parameters["args"]))
            elif event["method"] == "Log.entryAdded":
                found.append(parameters["entry"]["text"])
            elif event["method"] == "Network.requestWillBeSent" and parameters["type"] != "Document":
                if not parameters["request"]["url"].startswith("data:"):
                    found.append("fetched " + parameters["request"]["url"])
        return found

    def screenshot(self, file):
        image = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        pathlib.Path(file).write_bytes(base64.b64decode(image["data"]))

    def pdf(self, file):
        document = self.call("Page.printToPDF", printBackground=True, paperWidth=8.27, paperHeight=11.69)
        pathlib.Path(file).write_bytes(base64.b64decode(document["data"]))
