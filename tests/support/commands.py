"""autoseg as a user runs it, from a test: `from commands import SHORT, run`."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np

from autoseg.cli import main
from autoseg.workspace import Workspace

SETTINGS = (  # nothing that is measured, and so may differ from run to run
    "training.iterations_per_epoch=12", "training.workers=0", "training.autocast=float32", "training.chain=host",
)  # fmt: skip
SHORT = [word for setting in SETTINGS for word in ("--set", setting)]


def run(*arguments: object) -> None:
    if arguments[0] == "plan":
        arguments = (*arguments, "--cpu-rate", "reference")  # the same plan on every machine
    if arguments[0] == "evaluate":
        arguments = (*arguments, "--no-report")  # it has tests of its own
    code = main([str(a) for a in arguments])
    assert code == 0, f"autoseg {' '.join(map(str, arguments))} ended with {code}"


def outcome(capsys, *arguments: object) -> tuple[int, str]:
    """Exit code of a command and all that it says. A traceback is an exception here."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as exit:  # argparse
        code = exit.code if isinstance(exit.code, int) else 2
    said = capsys.readouterr()
    return code, said.out + said.err


class Killed(BaseException):
    """Stands for whatever ends a process in the middle of a training."""


def copy_of(workspace: Workspace, root: Path) -> Workspace:
    shutil.copytree(workspace.root, root)
    return Workspace(root)


def dice_of(folder: Path, dataset: Path) -> float:
    """Of all foreground, over the files of a folder."""
    both = total = 0
    for path in folder.glob("*.nii.gz"):
        found = np.asarray(nib.load(path).dataobj) > 0
        wanted = np.asarray(nib.load(dataset / "labelsTr" / path.name).dataobj) > 0
        both, total = both + (found & wanted).sum(), total + found.sum() + wanted.sum()
    return 2 * both / total
