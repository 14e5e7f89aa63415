"""Who uses the server: each browser and each program has its own cases, and sees no other's.

A visitor enters with the token of the server, which is in the address that `autoseg serve` prints, and is known by a
secret of its own from then on: a cookie, or what `POST /api/session` answers. One that nothing was heard of for
IDLE_SECONDS is forgotten, with its cases and its files.
"""

import hmac
import secrets
import shutil
import threading
from pathlib import Path
from time import monotonic

from autoseg.serve.cases import OpenCase
from autoseg.serve.refusals import Refused
from autoseg.serve.uploads import Draft

IDLE_SECONDS = 3600.0
MOST_VISITORS = 32
MOST_CASES = 8  # of a visitor at a time
MOST_DRAFTS = 4


class Visitor:
    """One browser or program.

    Args:
        folder: for its uploads.
    """

    def __init__(self, folder: Path) -> None:
        self.secret, self.id = secrets.token_urlsafe(32), secrets.token_urlsafe(9)
        self.folder = folder / self.id
        self.cases: dict[str, OpenCase] = {}
        self.drafts: dict[str, Draft] = {}
        self.heard = monotonic()

    def case(self, case_id: str) -> OpenCase:
        """One of its cases. Raises Refused where it has none of this name."""
        if (found := self.cases.get(case_id)) is None:
            raise Refused(404, "there is no such case", remedy="list yours: GET /api/cases")
        return found

    def draft(self, draft_id: str) -> Draft:
        """Files that are being uploaded. Raises Refused where there are none of this name."""
        if (found := self.drafts.get(draft_id)) is None:
            raise Refused(404, "there is no such upload", remedy="begin one: POST /api/drafts")
        return found

    def new_draft(self) -> Draft:
        """Raises Refused: too many are begun."""
        if len(self.drafts) >= MOST_DRAFTS:
            raise Refused(429, f"{MOST_DRAFTS} uploads are begun", remedy="open or delete one of them first")
        made = Draft(self.folder / secrets.token_urlsafe(9))
        self.drafts[made.id] = made
        return made

    def require_room(self, more: int) -> None:
        """Raises Refused where so many further cases would be too many."""
        if len(self.cases) + more > MOST_CASES:
            raise Refused(
                429, f"{len(self.cases)} cases are open and {more} would be added, of at most {MOST_CASES}",
                remedy="close some first; many images at once are for predict on the command line",
            )  # fmt: skip

    @property
    def stored(self) -> int:
        """Bytes that it has uploaded, and that are still there."""
        held = {case.upload.id: case.upload for case in self.cases.values() if case.upload}
        return sum(draft.nbytes for draft in (held | self.drafts).values())

    def close(self, case: OpenCase) -> None:
        """Forget a case; its files go with the last case of their upload."""
        self.cases.pop(case.id, None)
        case.close()
        if case.upload and all(other.upload is not case.upload for other in self.cases.values()):
            case.upload.remove()

    def leave(self) -> None:
        """Forget everything."""
        for case in [*self.cases.values()]:
            self.close(case)
        shutil.rmtree(self.folder, ignore_errors=True)


class Visitors:
    """All of them.

    Args:
        folder: for uploads.

    Attributes:
        token: with which one enters.
    """

    def __init__(self, folder: Path) -> None:
        self.token, self.folder = secrets.token_urlsafe(32), folder
        self._known: dict[str, Visitor] = {}
        self._lock = threading.Lock()

    def may_enter(self, token: str) -> bool:
        """Whether this is the token of the server."""
        return same(token, self.token)

    def enter(self) -> Visitor:
        """A new visitor. Raises Refused: there are too many."""
        self.forget_idle()
        with self._lock:
            if len(self._known) >= MOST_VISITORS:
                raise Refused(429, f"{MOST_VISITORS} sessions are open", remedy="wait an hour, or restart it")
            visitor = Visitor(self.folder)
            self._known[visitor.secret] = visitor
            return visitor

    def known(self, secret: str) -> Visitor | None:
        """The visitor with a secret, who was heard of now; None: there is none."""
        with self._lock:
            found = next((visitor for own, visitor in self._known.items() if same(own, secret)), None)
            if found:
                found.heard = monotonic()
            return found

    def forget_idle(self) -> None:
        """Forget those who were not heard of for long, and have nothing running."""
        with self._lock:
            now = monotonic()
            idle = [v for v in self._known.values() if now - v.heard > IDLE_SECONDS and not _busy(v)]
            for visitor in idle:
                del self._known[visitor.secret]
        for visitor in idle:
            visitor.leave()

    def drop(self, visitor: Visitor) -> None:
        """Forget one."""
        with self._lock:
            self._known.pop(visitor.secret, None)
        visitor.leave()

    def close(self) -> None:
        """Forget all."""
        with self._lock:
            everyone, self._known = [*self._known.values()], {}
        for visitor in everyone:
            visitor.leave()


def same(one: str, other: str) -> bool:
    """Whether two secrets are equal, in a time that does not say where they differ."""
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


def _busy(visitor: Visitor) -> bool:
    return any(case.busy for case in visitor.cases.values())
