"""A stand-in for a SuperLink that is asked for the time."""

from __future__ import annotations

import email.utils
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class Speaks:
    """A server on loopback that answers any request with its own time, over TLS or plainly."""

    def __init__(self, server: Path | None, off: float = 0.0) -> None:
        self.server, self.off, self.said = server, off, []

    def __enter__(self) -> str:
        off = self.off

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response_only(404)
                self.send_header("Date", email.utils.formatdate(time.time() + off, usegmt=True))
                self.end_headers()

            def log_message(self, *args):
                pass

        class Quiet(HTTPServer):
            def handle_error(self, request, client_address):
                pass

        self.http = Quiet(("127.0.0.1", 0), Answer)
        if self.server is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.server / "server.crt", self.server / "server.key")
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return f"127.0.0.1:{self.http.server_address[1]}"

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()
