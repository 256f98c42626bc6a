"""A file server on loopback, which can hang up and stall."""

import contextlib
import hashlib
import http.server
import threading

import numpy as np

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """Serve CONTENT at /weights.pth, whole or from a byte on, and record the `requested` ranges.

    It hangs up after the byte `stop`, having waited for `pause` seconds.
    """

    ranges, stop, pause, requested = True, len(CONTENT), 0.0, []
    announced = True  # whether it states the length

    def do_GET(self):
        self.requested.append(self.headers["Range"])
        if not self.path.endswith("/weights.pth"):
            self.send_error(404)
            return
        start = int((self.headers["Range"] or "bytes=0-")[6:-1]) if self.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if self.headers["Range"] and self.ranges else 200)
        if self.announced:
            self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : self.stop])
        self.over.wait(self.pause)  # before it hangs up

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(monkeypatch):
    """Run a server, and yield its handler class, which has its `url`."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    handler = type("Handler", (Server,), {"requested": [], "over": threading.Event()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        handler.url = f"http://127.0.0.1:{running.server_port}/weights.pth"
        yield handler
        handler.over.set()
        running.shutdown()
        thread.join()
