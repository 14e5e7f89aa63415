"""The folder of a fold, held by one training.

With `--restart` the old fold stays where it is until everything else is known to work: the network is built, the
weights to begin with are read, the data are open and the first batch is there. Only then it gets another name.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from autoseg.nn.distributed import Ranks
from autoseg.workspace import aside_name, lock


class FoldFolder:
    """The folder of a fold that no other training may touch.

    Args:
        aside: new name for what is there when the training begins; None: it stays.
        guard: holds the lock.
    """

    def __init__(self, path: Path, aside: Path | None = None, guard: ExitStack | None = None) -> None:
        self.path, self.aside, self.guard = path, aside, guard
        self.replaced = False

    def begin(self) -> None:
        """Rename what is there: from now on the folder is that of the new training."""
        if self.aside is None or self.guard is None or self.replaced:
            return
        self.guard.close()
        self.path.rename(self.aside)
        self.replaced = True
        self.guard.enter_context(_locked(self.path))

    def put_back(self) -> None:
        """Give the old fold its name again, where the new training could not even begin."""
        if self.aside is None or self.guard is None or not self.replaced:
            return
        self.guard.close()
        self.path.rename(self.path.with_name(aside_name(self.path).replace(".before-", ".failed-")))
        self.aside.rename(self.path)
        self.replaced = False

    def where_it_lies(self, checkpoint: Path) -> Path:
        """Path of a checkpoint once the training has begun: one in this folder is then set aside with it."""
        if self.aside is not None and checkpoint.resolve().parent == self.path.resolve():
            return self.aside.resolve() / checkpoint.name
        return checkpoint.resolve()


@contextmanager
def held(folder: Path, restart: bool, ranks: Ranks) -> Iterator[FoldFolder]:
    """Keep other trainings off the fold's folder while the body runs.

    Of several processes that train together, the first does it for all.

    Args:
        restart: `FoldFolder.begin` is to set aside what is there.
    """
    aside = folder.with_name(aside_name(folder)) if restart and _holds_something(folder) else None
    if ranks.rank > 0:
        ranks.barrier()
        yield FoldFolder(folder, aside)
        return
    with ExitStack() as guard:
        guard.enter_context(_locked(folder))
        ranks.barrier()
        yield FoldFolder(folder, aside, guard)


def _holds_something(folder: Path) -> bool:
    return folder.exists() and any(path.name != ".lock" for path in folder.iterdir())


def _locked(folder: Path) -> AbstractContextManager[None]:
    return lock(folder / ".lock", f"training {folder}")
