"""What the server answers where it does not do what was asked for: a status, the error, and its remedy."""

import traceback

from autoseg.errors import AutosegError, DataError, OutOfMemory, StateError, StorageError, UsageError

STATUS: dict[type[AutosegError], int] = {
    UsageError: 400, DataError: 422, StateError: 409, StorageError: 507, OutOfMemory: 507,
}  # fmt: skip
ASK_AGAIN = "repeat it; if that does not help, the terminal of autoseg serve shows a traceback to report"


class Refused(AutosegError):
    """A request that is not answered.

    Args:
        status: of HTTP.
        more: further entries of the document that says so.
    """

    def __init__(self, status: int, what: str, *, remedy: str, **more: object) -> None:
        super().__init__(what, remedy=remedy)
        self.status, self.more = status, more


def refusal(error: BaseException) -> tuple[int, dict[str, object]]:
    """The status and the document {"error", "remedy", ...} for what was raised; a bug keeps its traceback here."""
    from starlette.requests import ClientDisconnect

    from autoseg.nn.training_step import is_out_of_memory
    from autoseg.serve.work import Cancelled

    if isinstance(error, Refused):
        return error.status, {"error": error.what, "remedy": error.remedy, **error.more}
    if isinstance(error, AutosegError):
        status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 400)
        return status, {"error": error.what, "remedy": error.remedy}
    if isinstance(error, ClientDisconnect):
        return 499, {"error": "the upload was broken off", "remedy": "send the file again"}
    if isinstance(error, Cancelled):
        return 410, {"error": "the case was closed", "remedy": "open it again"}
    if isinstance(error, MemoryError) or (isinstance(error, Exception) and is_out_of_memory(error)):
        what = f"out of memory: {str(error).partition(chr(10))[0][:120]}"
        return 507, {"error": what, "remedy": "close other cases, or use a machine with more memory"}
    traceback.print_exception(error)
    return 500, {"error": f"{type(error).__name__}: an error of autoseg itself", "remedy": ASK_AGAIN}
