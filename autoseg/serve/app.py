"""The endpoints: the same for the page and for programs. docs/serve.md lists them.

page      /, /page.js, /page.css, /niivue.js
who       POST /api/session, GET /api/about
images    GET /api/folder, POST /api/drafts, PUT /api/drafts/{id}/{name}, POST and DELETE /api/drafts/{id}
cases     GET and POST /api/cases, GET and DELETE /api/cases/{id}, image.nii.gz, labels.nii.gz, saliency.nii.gz
work      POST /api/cases/{id}/segment, /prompts, /undo, /save
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from autoseg import __version__
from autoseg.datasets.dataset import Case
from autoseg.messages import complete
from autoseg.report.html import VIEWER
from autoseg.serve.cases import Changed, OpenCase, prompt_in
from autoseg.serve.engine import Engine
from autoseg.serve.folder import Folder, case_of, no_case, problem_texts, understood
from autoseg.serve.refusals import Refused, refusal
from autoseg.serve.saving import TrainingSet, download, save_beside
from autoseg.serve.uploads import readable
from autoseg.serve.visitors import Visitor, Visitors
from autoseg.serve.work import Job, Worker

HERE = Path(__file__).parent
VIEWER_FILE = HERE.parent / "report" / VIEWER
STATIC = {
    "/page.js": (HERE / "page" / "page.js", "text/javascript"),
    "/view.js": (HERE / "page" / "view.js", "text/javascript"),
    "/page.css": (HERE / "page" / "page.css", "text/css"),
    "/niivue.js": (VIEWER_FILE, "text/javascript"),
}  # fmt: skip
MOST_JSON = 2**20  # bytes of a document that is sent here
PLACES = ("beside", "training set", "download")

Handler = Callable[["Served", Request], Awaitable[Response]]


@dataclass(frozen=True)
class Served:
    """What the endpoints work with."""

    engine: Engine
    worker: Worker
    visitors: Visitors
    folder: Folder | None = None
    training_set: TrainingSet | None = None
    no_training_set: str = "no training set is known: start with --training-set DIR"
    no_prompts: str = ""  # what would enable corrections, where they are not
    max_upload: int = 2 * 10**9  # bytes of one visitor at a time
    workspace: Path | None = None  # for commands that messages suggest


def application(served: Served) -> Starlette:
    """The application, without its guard."""
    routes = [
        Route(path, _guarded(served, handler), methods=[method])
        for method, path, handler in (
            ("GET", "/", _page), *(("GET", path, _static) for path in STATIC),
            ("POST", "/api/session", _enter), ("DELETE", "/api/session", _leave), ("GET", "/api/about", _about),
            ("GET", "/api/folder", _folder), ("POST", "/api/drafts", _new_draft),
            ("PUT", "/api/drafts/{draft}/{name:path}", _receive), ("POST", "/api/drafts/{draft}", _open_draft),
            ("DELETE", "/api/drafts/{draft}", _drop_draft), ("GET", "/api/cases", _cases),
            ("POST", "/api/cases", _open), ("GET", "/api/cases/{case}", _case),
            ("DELETE", "/api/cases/{case}", _close), ("GET", "/api/cases/{case}/image.nii.gz", _image),
            ("GET", "/api/cases/{case}/labels.nii.gz", _labels),
            ("GET", "/api/cases/{case}/saliency.nii.gz", _saliency), ("POST", "/api/cases/{case}/segment", _segment),
            ("POST", "/api/cases/{case}/prompts", _prompt), ("POST", "/api/cases/{case}/undo", _undo),
            ("POST", "/api/cases/{case}/save", _save),
        )
    ]  # fmt: skip
    return Starlette(routes=routes, exception_handlers={404: _not_found, 405: _not_found})


def _guarded(served: Served, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """A handler whose errors are answers."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(served, request)
        except Exception as error:
            status, document = refusal(error)
            texts = {key: complete(str(document[key]), served.workspace) for key in ("error", "remedy")}
            return JSONResponse(document | texts, status)

    return answer


async def _not_found(request: Request, error: Exception) -> Response:
    document = {"error": f"there is no {request.method} {request.url.path[:80]}", "remedy": "docs/serve.md lists them"}
    return JSONResponse(document, getattr(error, "status_code", 404))


# ---- the page, and who sees it


async def _page(served: Served, request: Request) -> Response:
    return FileResponse(HERE / "page" / "index.html", media_type="text/html")


async def _static(served: Served, request: Request) -> Response:
    path, kind = STATIC[request.url.path]
    return FileResponse(path, media_type=kind)


async def _enter(served: Served, request: Request) -> Response:
    visitor = served.visitors.enter()
    return JSONResponse({"session": visitor.secret, "version": __version__}, 201)


async def _leave(served: Served, request: Request) -> Response:
    await run_in_threadpool(served.visitors.drop, _visitor(request))
    return Response(status_code=204)


async def _about(served: Served, request: Request) -> Response:
    engine, visitor = served.engine, _visitor(request)
    return JSONResponse(
        {
            "version": __version__, "models": [model.name for model in engine.models], "dataset": engine.plan.dataset,
            "channels": engine.plan.channels,
            "labels": [{"name": one.name, "value": one.value, "colour": one.colour} for one in engine.labels],
            "prompts": engine.prompted is not None, "no_prompts": served.no_prompts,
            "folder": served.folder.root.name if served.folder else None,
            "training_set": served.training_set.root.name if served.training_set else None,
            "no_training_set": "" if served.training_set else served.no_training_set,
            "max_upload": served.max_upload, "room": served.max_upload - visitor.stored,
        }
    )  # fmt: skip


# ---- images


async def _folder(served: Served, request: Request) -> Response:
    return JSONResponse(await run_in_threadpool(_the_folder(served).listing))


async def _new_draft(served: Served, request: Request) -> Response:
    draft = _visitor(request).new_draft()
    return JSONResponse({"id": draft.id, "room": served.max_upload - _visitor(request).stored}, 201)


async def _receive(served: Served, request: Request) -> Response:
    visitor = _visitor(request)
    draft = visitor.draft(request.path_params["draft"])
    room = served.max_upload - visitor.stored + draft.nbytes
    length = request.headers.get("content-length", "")
    announced = int(length) if length.isdigit() else None
    await draft.receive(request.path_params["name"], request.stream(), room, announced)
    return JSONResponse({"files": draft.files, "bytes": readable(draft.nbytes)}, 201)


async def _open_draft(served: Served, request: Request) -> Response:
    visitor = _visitor(request)
    draft = visitor.draft(request.path_params["draft"])
    try:
        found, problems = await run_in_threadpool(understood, [draft.folder], served.engine.plan)
        if not found:
            raise no_case(problems)
        opened = [OpenCase(served.engine, case_of(*one), upload=draft) for one in found]
        visitor.require_room(len(opened))
        del visitor.drafts[draft.id]
    except BaseException:
        visitor.drafts.pop(draft.id, None)
        draft.remove()
        raise
    return await _opened(served, visitor, opened, problem_texts(problems))


async def _drop_draft(served: Served, request: Request) -> Response:
    visitor = _visitor(request)
    draft = visitor.draft(request.path_params["draft"])
    del visitor.drafts[draft.id]
    await run_in_threadpool(draft.remove)
    return Response(status_code=204)


async def _open(served: Served, request: Request) -> Response:
    visitor, document = _visitor(request), await _document(request)
    name = document.get("image")
    if not isinstance(name, str):
        raise Refused(400, "image: expected a name", remedy='give {"image": NAME} with a name of GET /api/folder')
    found: tuple[Case, Path | None] = await run_in_threadpool(_the_folder(served).case, name)
    visitor.require_room(1)
    return await _opened(served, visitor, [OpenCase(served.engine, found[0], beside=found[1])], [])


async def _opened(
    served: Served, visitor: Visitor, cases: Sequence[OpenCase], problems: list[dict[str, str]]
) -> Response:
    """Read cases, and answer those that could be read; what is wrong with the first, where none could."""
    failed: list[BaseException] = []
    for case in cases:
        visitor.cases[case.id] = case
    for case in cases:
        try:
            await _done(served, visitor, case, "open", case.open)
        except Exception as error:
            failed.append(error)
            visitor.close(case)
            document = refusal(error)[1]
            problems.append({"file": case.case.id, "severity": "error"} | {k: str(v) for k, v in document.items()})
    ready = [case for case in cases if case.loaded is not None]
    if not ready:
        raise failed[0]
    return JSONResponse({"cases": [_state(served, case) for case in ready], "problems": problems}, 201)


# ---- cases


async def _cases(served: Served, request: Request) -> Response:
    return JSONResponse({"cases": [_state(served, case) for case in _visitor(request).cases.values()]})


async def _case(served: Served, request: Request) -> Response:
    return JSONResponse(_state(served, _case_of(request)))


async def _close(served: Served, request: Request) -> Response:
    await run_in_threadpool(_visitor(request).close, _case_of(request))
    return Response(status_code=204)


async def _image(served: Served, request: Request) -> Response:
    channel = request.query_params.get("channel", "0")
    number = int(channel) if channel.isdigit() and len(channel) < 6 else -1
    return await _nifti(partial(_case_of(request).image_bytes, number, _most(request)))


async def _labels(served: Served, request: Request) -> Response:
    return await _nifti(partial(_case_of(request).label_bytes, _most(request)))


async def _saliency(served: Served, request: Request) -> Response:
    """Where the models looked; what should be known of it is in the header X-Note."""
    case, name = _case_of(request), request.query_params.get("label", "")
    run = partial(case.saliency_bytes, name, _most(request))
    _, (content, note) = await _done(served, _visitor(request), case, "explain", run)
    return Response(content, media_type="application/gzip", headers={"X-Note": quote(note)})


async def _nifti(make: Callable[[], bytes]) -> Response:
    return Response(await run_in_threadpool(make), media_type="application/gzip")


# ---- work


async def _segment(served: Served, request: Request) -> Response:
    visitor, case = _visitor(request), _case_of(request)
    if case.busy:
        raise Refused(409, f"{case.case.id} is being worked on", remedy="wait until that has ended")
    job = served.worker.submit(visitor.id, "segment", case.segment)
    case.jobs.append(job)
    case.segmenting = job
    return JSONResponse(_state(served, case), 202)


async def _prompt(served: Served, request: Request) -> Response:
    case, document = _case_of(request), await _document(request)
    prompt = prompt_in(document, served.engine, served.no_prompts)
    return await _correct(served, request, case, "correct", partial(case.correct, prompt))


async def _undo(served: Served, request: Request) -> Response:
    case = _case_of(request)
    return await _correct(served, request, case, "undo", case.undo)


async def _correct(
    served: Served, request: Request, case: OpenCase, what: str, run: Callable[[Job], Changed | None]
) -> Response:
    """Have a prompt answered or undone, after those before it, and answer what changed."""
    if any(job.what == "segment" for job in case.jobs if not job.over):
        raise Refused(409, f"{case.case.id} is being segmented", remedy="correct it when that has ended")
    job, changed = await _done(served, _visitor(request), case, what, run)
    case.seconds = job.seconds
    document = changed.document() if changed else None
    return JSONResponse({"case": _state(served, case), "changed": document, "seconds": round(job.seconds, 3)})


async def _save(served: Served, request: Request) -> Response:
    visitor, case, document = _visitor(request), _case_of(request), await _document(request)
    where, name = document.get("where"), document.get("name") or ""
    overwrite = document.get("overwrite") is True
    if where not in PLACES or not isinstance(name, str):
        raise Refused(400, f"where: {where!r} is not a place", remedy=f"give one of {', '.join(PLACES)}")
    if where == "training set" and served.training_set is None:
        raise Refused(409, served.no_training_set, remedy="start again with --training-set DIR, or download it")
    if where == "beside":
        _, path = await _done(served, visitor, case, "save", lambda job: save_beside(case, overwrite=overwrite))
        return JSONResponse({"saved": path.name})
    if where == "training set":
        assert served.training_set is not None
        into = served.training_set
        _, added = await _done(served, visitor, case, "save", lambda job: into.add(case, name))
        return JSONResponse(
            {"saved": added.label.name, "images": [path.name for path in added.images], "command": added.command}
        )
    _, (called, content) = await _done(served, visitor, case, "save", lambda job: download(case, visitor.folder, name))
    disposition = f"attachment; filename*=UTF-8''{quote(called)}"
    return Response(content, media_type="application/octet-stream", headers={"Content-Disposition": disposition})


# ---- what they share


async def _done(
    served: Served, visitor: Visitor, case: OpenCase, what: str, run: Callable[[Job], Any]
) -> tuple[Job, Any]:
    """Queue a job of a case, and wait for its result. Raises what it raises."""
    job = served.worker.submit(visitor.id, what, run)
    case.jobs.append(job)
    return job, await asyncio.wrap_future(job.result)


def _state(served: Served, case: OpenCase) -> dict[str, Any]:
    """A case, and how far its jobs are."""
    document = case.info()
    waiting = [job for job in case.jobs if not job.over]
    document["state"] = waiting[0].state if waiting else "ready"
    if waiting:
        document["doing"], document["progress"] = waiting[0].what, round(waiting[0].progress, 4)
        document["place"] = served.worker.place(waiting[0])
    elif case.segmenting is not None and case.segmenting.state == "failed":
        document |= {"state": "failed"} | case.failed()
    return document


def _visitor(request: Request) -> Visitor:
    found: Visitor = request.state.visitor
    return found


def _case_of(request: Request) -> OpenCase:
    return _visitor(request).case(request.path_params["case"])


def _the_folder(served: Served) -> Folder:
    if served.folder is None:
        raise Refused(404, "no folder is served", remedy="start with --folder DIR, or upload files")
    return served.folder


def _most(request: Request) -> int | None:
    """How many voxels along an axis a viewer can show."""
    text = request.query_params.get("most", "")
    return max(16, int(text)) if text.isdigit() and len(text) < 6 else None


async def _document(request: Request) -> dict[str, Any]:
    """The JSON object that was sent. Raises Refused."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_JSON:
            raise Refused(413, f"a document of more than {readable(MOST_JSON)}", remedy="send less")
    try:
        found = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Refused(400, "the body is not a JSON object", remedy='send one, such as {"where": "download"}')
    return found
