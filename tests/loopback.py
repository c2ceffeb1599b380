"""A web server on this machine that answers range requests, and fails as it is told."""

import contextlib
import http.server
import re
import threading
import time

from bacl_jax.data import storage


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        with self.server.lock:
            self.server.requests.append(self.path)
            fault = self.server.faults.pop(0) if self.server.faults else None
            if self.path in self.server.lives:
                self.server.lives[self.path] -= 1
            content = self.server.files.get(self.path) if self.server.lives.get(self.path, 0) >= 0 else None
        if content is None:
            return self.answer(404, b"")
        if isinstance(fault, int):
            return self.answer(fault, b"")
        if fault == "drop":
            self.close_connection = True
            return None
        if fault == "hang":
            self.server.released.wait()
            self.close_connection = True
            return None
        if fault == "slow":
            time.sleep(0.05)
        if not self.server.ranges:
            return self.answer(200, content)
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
        if first >= len(content):
            return self.answer(416, b"", f"bytes */{len(content)}")
        part = content[first : last + 1]
        return self.answer(206, part, f"bytes {first}-{first + len(part) - 1}/{len(content)}", fault)

    def answer(self, status, content, span=None, fault=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if span:
            self.send_header("Content-Range", span)
        if status in (429, 503) and self.server.retry_after is not None:
            self.send_header("Retry-After", self.server.retry_after)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # whoever asked has left
            if fault == "cut":
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            elif fault == "trickle":
                for i in range(len(content)):
                    self.wfile.write(content[i : i + 1])
                    self.wfile.flush()
                    if self.server.released.wait(0.01):
                        break
                self.close_connection = True
            else:
                self.wfile.write(content)

    def log_message(self, format, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    """files:    path -> content.
    faults:      what the next requests meet, in turn: a status, "drop", "cut", "hang", "slow", "trickle", or None.
    lives:       path -> requests after which it is gone.
    ranges:      False: Range is ignored.
    retry_after: the header of the answers 429 and 503.
    requests:    the paths asked for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.faults, self.lives, self.requests = {}, [], {}, []
        self.ranges, self.retry_after = True, None
        self.lock, self.released = threading.Lock(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def serving(monkeypatch):
    """A server in a thread; nobody waits long for it."""
    monkeypatch.setattr(storage, "BACKOFF", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            running.released.set()
            running.shutdown()
            thread.join()
