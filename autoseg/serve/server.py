"""The server itself: a port of this machine, the address with its token, and what is removed at the end.

It listens on 127.0.0.1 and nowhere else. Somebody at another machine comes through `ssh -L PORT:127.0.0.1:PORT`.
"""

import os
import shutil
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import uvicorn

from autoseg.errors import StorageError
from autoseg.serve.access import Guard
from autoseg.serve.app import Served, application
from autoseg.serve.visitors import Visitors
from autoseg.serve.work import Worker

HOST = "127.0.0.1"
MOST_AT_ONCE = 128  # requests

Make = Callable[[Worker, Visitors], Served]


class Server:
    """A server with a thread that computes and a folder for uploads, both of which it ends; a context manager.

    Args:
        make: what is served, given the thread and the visitors.
        port: 0: any that is free.

    Attributes:
        address: of the page, with the token.

    Raises:
        StorageError: the port is in use.
    """

    def __init__(self, make: Make, port: int = 0) -> None:
        self._socket = _bound(port)
        self.port: int = self._socket.getsockname()[1]
        self._folder = Path(tempfile.mkdtemp(prefix="autoseg-serve-"))
        self.visitors = Visitors(self._folder)
        self.worker = Worker(self.visitors.forget_idle)
        self.address = f"http://{HOST}:{self.port}/?token={self.visitors.token}"
        guarded = Guard(application(make(self.worker, self.visitors)), self.visitors, self.port)
        config = uvicorn.Config(
            guarded, log_level="warning", access_log=False, lifespan="off", ws="none", proxy_headers=False,
            server_header=False, timeout_graceful_shutdown=3, limit_concurrency=MOST_AT_ONCE,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Server":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self) -> None:
        """Serve until Ctrl-C."""
        self._server.run(sockets=[self._socket])

    def start(self) -> "Server":
        """Serve in a thread."""
        self._thread = threading.Thread(target=self.run, name="serve-http", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            self._thread.join(0.01)
        return self

    def close(self) -> None:
        """Stop serving, give up what is computed, and remove what was uploaded."""
        self._server.should_exit = True
        if self._thread:
            self._thread.join(30)
        self.worker.close()
        self.visitors.close()
        self._socket.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def open_in_browser(self) -> None:
        """Show the page in a browser, through a file that only this user reads: others see command lines."""
        path = self._folder / "open.html"
        path.touch(mode=0o600)
        path.write_text(f'<meta http-equiv="refresh" content="0; url={self.address}"><title>autoseg</title>')
        webbrowser.open(path.as_uri())


def _bound(port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((HOST, port))
        found.listen(MOST_AT_ONCE)  # whoever reads the address at once waits, and is not refused
    except OSError as error:
        found.close()
        raise StorageError(
            f"port {port} cannot be used: {error.strerror}", remedy="choose another one: --port 8766; or any: --port 0"
        ) from None
    return found
