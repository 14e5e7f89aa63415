"""Servers in this process with tiny models of random weights, and requests to them: `from served import ...`."""

import gzip
import http.client
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from autoseg.models.build import build_plan_network
from autoseg.models.model import Model
from autoseg.planning.plan import Plan
from autoseg.planning.prompted import with_prompts
from autoseg.serve.app import Served
from autoseg.serve.engine import Engine
from autoseg.serve.folder import Folder
from autoseg.serve.server import Server
from exported import plan_for_tests

SHAPE = (12, 20, 24)


def model_of(plan: Plan, name: str) -> Model:
    """A model of one fold that never trained."""
    torch.manual_seed(len(name))
    network = build_plan_network(plan, plan.configurations[name]).eval()
    return Model(plan, name, (0,), (network,), "float32", 0.0, torch.device("cpu"))


def engine_of(plan: Plan | None = None, name: str = "3d_fullres", *, prompts: bool = True) -> Engine:
    """An engine whose labels are noise, which differs from place to place."""
    plan = replace(plan or plan_for_tests(), orientation="canonical")
    if not prompts:
        return Engine([model_of(plan, name)])
    plan, prompted = with_prompts(plan, name)
    return Engine([model_of(plan, name)], prompted=model_of(plan, prompted))


@contextmanager
def serving(engine: Engine, folder: Path | None = None, **more: Any) -> Iterator[Server]:
    """A server in a thread; `more` are fields of `Served`."""
    images = Folder(folder, engine.plan) if folder else None
    with Server(lambda worker, visitors: Served(engine, worker, visitors, images, **more)) as server:
        yield server.start()


class Program:
    """A program with a session of its own."""

    def __init__(self, server: Server) -> None:
        self.port, self.secret = server.port, server.visitors.token
        self.secret = self.json("POST", "/api/session")["session"]

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None):
        """(status, headers, body as bytes); headers are added to what a program sends, None removes one."""
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"Authorization": f"Bearer {self.secret}"} | (headers or {})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, content, {k: v for k, v in sent.items() if v is not None})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def json(self, method: str, path: str, body: Any = None) -> Any:
        """The document of an answer that is no refusal."""
        status, _, content = self.ask(method, path, body)
        assert status < 300, (status, content)
        return json.loads(content) if content else None

    def refused(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None):
        """(status, error, remedy) of a refusal."""
        status, _, content = self.ask(method, path, body, headers)
        assert status >= 400, (status, content[:100])
        document = json.loads(content)
        return status, document["error"], document["remedy"]

    def upload(self, *files: tuple[str, Path | bytes]) -> Any:
        """What opening these files answers; the names are those that a page would send."""
        draft = self.json("POST", "/api/drafts")["id"]
        for name, content in files:
            data = content.read_bytes() if isinstance(content, Path) else content
            self.json("PUT", f"/api/drafts/{draft}/{name}", data)
        return self.json("POST", f"/api/drafts/{draft}")

    def segmented(self, case: str) -> Any:
        """A case, after it was segmented."""
        self.json("POST", f"/api/cases/{case}/segment")
        while (found := self.json("GET", f"/api/cases/{case}"))["state"] in ("waiting", "running"):
            time.sleep(0.01)
        assert found["state"] == "ready", found
        return found


def voxels_of(content: bytes) -> np.ndarray:
    """(Z, Y, X) of a .nii.gz file."""
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(content))
    return np.asarray(image.dataobj).transpose(2, 1, 0)
