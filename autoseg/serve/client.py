"""A client of `autoseg serve` for programs, of the standard library alone: copy this file where autoseg is not."""

import json
import time
from pathlib import Path
from urllib import error, parse, request


class Client:
    """A session of its own, given the address that `autoseg serve` printed."""

    def __init__(self, address: str) -> None:
        self.opener, found = request.build_opener(request.ProxyHandler({})), parse.urlsplit(address)
        self.base, self.secret, self.case = f"http://{found.netloc}", parse.parse_qs(found.query)["token"][0], ""
        self.secret = self._json("POST", "/api/session")["session"]

    def open(self, *paths: str | Path) -> dict:
        """Upload the files of one case, or a folder; what else is called concerns this case."""
        draft = f"/api/drafts/{self._json('POST', '/api/drafts')['id']}"
        for path in map(Path, paths):
            for file in [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file()):
                self._send("PUT", f"{draft}/{parse.quote(str(file.relative_to(path.parent)))}", file.read_bytes())
        found = self._json("POST", draft)["cases"][0]
        self.case = f"/api/cases/{found['id']}"
        return found

    def segment(self) -> dict:
        """Segment it; returns its state, with labels and volumes."""
        self._send("POST", f"{self.case}/segment")
        while (found := self._json("GET", self.case))["state"] in ("waiting", "running"):
            time.sleep(0.05)
        if found["state"] == "failed":
            raise RuntimeError(f"{found['error']}\n  -> {found['remedy']}")
        return found

    def click(self, z: int, y: int, x: int, label: str) -> dict:
        """Say which label, or "background", a voxel has; returns the case and what changed."""
        return self._json("POST", f"{self.case}/prompts", {"kind": "click", "points": [[z, y, x]], "label": label})

    def undo(self) -> dict:
        """Take back the last prompt."""
        return self._json("POST", f"{self.case}/undo")

    def labels(self) -> bytes:
        """A .nii.gz file of the labels."""
        return self._send("GET", f"{self.case}/labels.nii.gz")

    def save(self, path: str | Path) -> None:
        """Write the segmentation in the format of the image."""
        Path(path).write_bytes(self._send("POST", f"{self.case}/save", b'{"where": "download"}'))

    def _json(self, method: str, path: str, document: dict | None = None) -> dict:
        return json.loads(self._send(method, path, json.dumps(document).encode() if document else b""))

    def _send(self, method: str, path: str, body: bytes = b"") -> bytes:
        headers = {"Authorization": f"Bearer {self.secret}"}
        try:
            return self.opener.open(request.Request(self.base + path, body or None, headers, method=method)).read()
        except error.HTTPError as refused:
            raise RuntimeError("{error}\n  -> {remedy}".format(**json.loads(refused.read()))) from None
