"""How a fold's training is reported: the bar, the lines, the history, the warnings.

`history.jsonl` is the truth, one JSON object per epoch. All else shows the same in another form: the lines on screen
and in `log.txt`, `progress.png`, the curves in `tensorboard/` where TensorBoard is installed. These other forms may
fail (a full disk, a broken installation): the failure is reported once, and training continues.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from tqdm import tqdm

from autoseg.lines import LOG, kept_by, rewritten
from autoseg.messages import duration
from autoseg.training.diagnosis import Finding, diagnose, ever_found
from autoseg.training.history import EpochRow, write_history
from autoseg.training.plots import draw_progress
from autoseg.workspace import FoldName

if TYPE_CHECKING:  # imported when an epoch is over and TensorBoard is there
    from torch.utils.tensorboard import SummaryWriter

PICTURE_SECONDS = 60.0  # least time between two drawings of progress.png,
PICTURE_SHARE = 0.01  # which may take so much of it
PAGE_SECONDS = 300.0  # before the first report, which takes about 3 s; later ones are that share of the time, too
MOST_SHOWN = 20  # labels in a line; of more, the others are counted
VERBS = {"unseen": "cannot learn a label"}  # how a kind of finding is reported; otherwise with an s


def warning(finding: Finding) -> str:
    """What is wrong with the fold whose log this is, and what to try, in two lines."""
    return f"{VERBS.get(finding.kind, f'{finding.kind}s')}: {finding.what}\n  -> {finding.remedy}"


def warning_of_fold(finding: Finding, fold: FoldName, configuration: str, network: str) -> str:
    """The same where no other line names the fold: with its model."""
    remedy = finding.remedy.replace("--restart", f"-c {configuration} --network {network} -f {fold} --restart")
    return f"fold {fold} of {configuration} ({network})  {warning(replace(finding, remedy=remedy))}"


class FoldLog:
    """Writes a fold's log; shows a bar on a terminal and one line per epoch everywhere.

    While it is open, what anybody logs is about this fold: `fold 0` stands before each line, and `log.txt` keeps it.

    Args:
        folder: of the fold; made when the first line is written.
        label_names: of the entries of `training_dice` and `pseudo_dice`.
        history: rows of the epochs before, of a fold that is resumed. What could be found in them counts as reported.
        unseen: names of the labels that no training case has; they join every row, by position.
        quiet: write nothing and show nothing, for all processes of a training but one.
        held_back: write nothing before `release`: the folder is still that of an older training.
        page: rewrites the workspace's report while the fold trains, first after PAGE_SECONDS.

    `history` and `findings` hold all rows, and what they show as of the last one.
    """

    def __init__(
        self,
        folder: Path,
        fold: FoldName,
        label_names: Sequence[str],
        history: Sequence[EpochRow],
        *,
        unseen: Sequence[str] = (),
        quiet: bool = False,
        held_back: bool = False,
        page: Callable[[], None] | None = None,
    ) -> None:
        self.folder = folder
        self.unseen = tuple(i for i, name in enumerate(label_names) if name in unseen)
        self.fold = fold
        self.label_names = tuple(label_names)
        self.quiet = quiet
        self.page = page
        self._held_back: list[str] | None = [] if held_back else None
        self.history = list(history)
        self.findings = diagnose(self.history, self.label_names)
        self._told = ever_found(self.history, self.label_names)
        self._curves = _Curves(folder / "tensorboard", self.label_names)
        self._failed: set[str] = set()  # what was reported to have failed
        self._logging = ExitStack()
        self._pictured = len(self.history)  # epochs that need no new picture
        self._picture_due = time.perf_counter() + PICTURE_SECONDS
        self._page_due = time.perf_counter() + PAGE_SECONDS
        self.bar = tqdm(
            total=1000, initial=_thousandths(self.history), disable=True if quiet else None, leave=False,
            desc=f"fold {fold}", bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed}<{remaining} {postfix}",
        )  # fmt: skip

    def __enter__(self) -> "FoldLog":
        self._logging.enter_context(rewritten(lambda text: f"fold {self.fold}  {text}"))
        if not self.quiet:
            self._logging.enter_context(kept_by(lambda text: self._attempt("log.txt", lambda: self._keep(text))))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._logging:
            self.close()

    def close(self) -> None:
        """Take the bar away and draw what has not been drawn yet."""
        self.bar.close()
        if self.quiet:
            return
        if self._pictured != len(self.history):
            self._attempt("progress.png", self._draw)
        self._attempt("tensorboard", self._curves.close)

    def release(self) -> None:
        """Write the lines held back so far; from now on, write every line."""
        lines, self._held_back = self._held_back or [], None
        if lines and not self.quiet:
            self._attempt("log.txt", lambda: self._keep("\n".join(lines)))

    def _keep(self, text: str) -> None:
        if self._held_back is not None:
            self._held_back.append(text)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "log.txt", "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def step(self, loss: float, progress: float) -> None:
        """Move the bar."""
        self.bar.set_postfix_str(
            f"loss {loss:+.3f}{self._dice(self.history[-1]) if self.history else ''}", refresh=False
        )
        self.bar.update(int(progress * 1000) - self.bar.n)

    def epoch(self, row: EpochRow) -> None:
        """Append one epoch to the history, write it down, show it, and name what has gone wrong since the last one.

        The labels that no training case has join the row.
        """
        self.history.append(replace(row, unseen=self.unseen))
        self.findings = diagnose(self.history, self.label_names)
        news = [f for f in self.findings if not {(f.kind, f.label), (f.kind, None)} & self._told]
        self._told |= {(f.kind, f.label) for f in news}
        if self.quiet:
            return
        write_history(self.folder, self.history)
        LOG.info(self._line(self.history[-1]))
        for finding in news:
            LOG.warning(warning(finding))
        self._attempt("tensorboard", lambda: self._curves.add(self.history))
        if time.perf_counter() >= self._picture_due:
            self._attempt("progress.png", self._draw)
        if self.page is not None and time.perf_counter() >= self._page_due:
            self._attempt("report.html", self._write_page)

    def summarise(self) -> None:
        """Log what the fold came to, and what is wrong with it as it stands: the end of a training."""
        if self.history and not self.quiet:
            row = self.history[-1]
            LOG.info(f"{row.step} steps in {duration(row.seconds)}{self._dice(row)}")
            for finding in self.findings:
                LOG.warning(warning(finding))

    def _line(self, row: EpochRow) -> str:
        skipped = f"  {row.skipped} steps skipped" if row.skipped else ""
        validation = f" / {_shown(row.validation_loss, '+.3f')}" if row.pseudo_dice is not None else ""
        remaining = row.seconds * (1 - row.progress) / max(row.progress, 1e-9)
        return (
            f"epoch {row.epoch:3d}  step {row.step:5d}  loss {_shown(row.loss, '+.3f')}"
            f"{validation}{self._dice(row)}{skipped}  {duration(row.seconds)}, {duration(remaining)} to go"
        )

    def _dice(self, row: EpochRow) -> str:
        """Pseudo Dice per label, and how much more the mean is on training patches, where both are known.

        Of more than MOST_SHOWN labels the first are shown, and the mean of all.
        """
        pseudo = row.pseudo_dice
        if pseudo is None:  # no case is held out
            return f"  training Dice {self._each(row.training_dice)}"
        pairs = zip(row.training_dice, pseudo, strict=True)
        gaps = [training - dice for training, dice in pairs if training is not None and dice is not None]
        return f"  pseudo Dice {self._each(pseudo)}" + (f" (training {sum(gaps) / len(gaps):+.3f})" if gaps else "")

    def _each(self, dice: Sequence[float | None]) -> str:
        """Dice of every label by name; of more than MOST_SHOWN labels the first ones, and the mean of all."""
        each = [f"{n} {_shown(d, '.3f')}" for n, d in zip(self.label_names, dice, strict=True)]
        shown = "  ".join(each[:MOST_SHOWN])
        if len(each) <= MOST_SHOWN:
            return shown
        known = [d for d in dice if d is not None]
        mean = _shown(sum(known) / len(known) if known else None, ".3f")
        return f"{shown}  and {len(each) - MOST_SHOWN} more, mean of all {mean}"

    def _draw(self) -> None:
        self._pictured, began = len(self.history), time.perf_counter()
        self._picture_due = began + PICTURE_SECONDS  # should it fail
        draw_progress(self.folder / "progress.png", self.history, self.label_names, f"fold {self.fold}")
        now = time.perf_counter()
        self._picture_due = now + max(PICTURE_SECONDS, (now - began) / PICTURE_SHARE)

    def _write_page(self) -> None:
        began = time.perf_counter()
        self._page_due = began + PAGE_SECONDS  # should it fail
        if self.page is not None:
            self.page()
        now = time.perf_counter()
        self._page_due = now + max(PICTURE_SECONDS, (now - began) / PICTURE_SHARE)

    def _attempt(self, what: str, act: Callable[[], None]) -> None:
        """Do what no training depends on; report a failure once."""
        try:
            act()
        except Exception as error:
            if what not in self._failed:
                self._failed.add(what)
                LOG.warning(f"cannot write {what}, training continues: {type(error).__name__}: {error}")


class _Curves:
    """A fold's curves for TensorBoard, if that is installed, over optimiser steps."""

    def __init__(self, folder: Path, label_names: Sequence[str]) -> None:
        self.folder = folder
        self.label_names = label_names
        self.writer: SummaryWriter | None = None
        self.step = 0  # of the last point

    def add(self, history: Sequence[EpochRow]) -> None:
        """Draw the last epoch of a history; nothing where TensorBoard is missing."""
        if find_spec("tensorboard") is None:
            return
        row = history[-1]
        if self.writer is None or row.step <= self.step:
            self._begin_after(history[-2].step if len(history) > 1 else -1)
        assert self.writer is not None
        values = {
            "loss/training": row.loss,
            "loss/validation": row.validation_loss,
            "learning_rate": row.learning_rate,
        }
        for key, dice in (("training_dice", row.training_dice), ("pseudo_dice", row.pseudo_dice or ())):
            values |= {f"{key}/{name}": value for name, value in zip(self.label_names, dice, strict=False)}
        for tag, value in values.items():
            if value is not None:
                self.writer.add_scalar(tag, value, row.step)
        self.writer.flush()
        self.step = row.step

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def _begin_after(self, step: int) -> None:
        """Open a new file in which all points after a step are forgotten: a fold that went back repeats them."""
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        self.writer = SummaryWriter(str(self.folder), purge_step=step + 1)


def _thousandths(history: Sequence[EpochRow]) -> int:
    """Where the bar of a resumed fold begins."""
    return int(1000 * history[-1].progress) if history else 0


def _shown(value: float | None, form: str) -> str:
    return "  - " if value is None else f"{value:{form}}"
