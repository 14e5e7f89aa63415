"""What parity.py runs on: datasets in nnU-Net's folders, planned by nnU-Net, and each side's view of them."""

import argparse
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
from equal_time import write_for_peer

from autoseg.datasets.dataset import Case, load_case
from autoseg.models.nnunet.description import Description
from autoseg.models.nnunet.plan import plan_of
from autoseg.planning.plan import Configuration, Plan
from autoseg.preprocessing.prepare import Prepared, prepare

HERE = Path(__file__).parent
CASES = 20
SETS = {  # number, title, configuration, memory target of the peer's planner in GB, planners
    "hippocampus": (5, "Hippocampus", "3d_fullres", "0.25"),
    "ms_thick": (7, "MSThick", "3d_fullres", "0.25"),
    "axon_sem": (6, "Axons", "2d", "0.25"),
}

Row = tuple[str, str, str, str, str]  # stage, data, figure, goal, reached


class PeerSet:
    """One dataset in the peer's folders, planned by the peer."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, self.options = name, options
        self.number, self.title, self.configuration, self.gigabytes = SETS[name]
        self.out = options.out.resolve()
        self.dataset = f"Dataset{self.number:03d}_{self.title}"
        parts = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
        self.environment = {variable: str(self.out / part) for variable, part in parts.items()}
        self.environment |= {"nnUNet_compile": "f", "nnUNet_n_proc_DA": "1", "nnUNet_extTrainer": str(HERE / "peer")}
        self.raw, self.planned = self.out / "raw" / self.dataset, self.out / "preprocessed" / self.dataset
        self.prepare()

    def prepare(self) -> None:
        """Write the raw data, measure and plan them; what is there is left alone."""
        if not self.raw.exists():
            WRITERS[self.name](self.options.data, self.raw)
        for planner, plans in (("ExperimentPlanner", "Plain"), ("nnUNetPlannerResEncM", "Residual")):
            if not self.plans(plans).exists():
                if not (self.planned / "dataset_fingerprint.json").exists():
                    self.command("extract_fingerprint", "-d", self.number, "-np", 2)
                self.command(
                    "plan_experiment", "-d", self.number, "-pl", planner, "-gpu_memory_target", self.gigabytes,
                    "-overwrite_plans_name", plans,
                )  # fmt: skip

    def plans(self, name: str = "Plain") -> Path:
        return self.planned / f"{name}.json"

    def command(self, name: str, *arguments: object) -> None:
        self.run(self.options.peer / "bin" / f"nnUNetv2_{name}", *arguments)

    def run(self, *words: object) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | self.environment
        subprocess.run([str(word) for word in words], check=True, env=environment, stdout=subprocess.DEVNULL)

    def stage(self, stage: str, folder: Path, **given: object) -> Path:
        """Run a stage of the peer; what it wrote is in the folder."""
        words = [f"{key}={value}" for key, value in given.items()]
        self.run(self.options.peer / "bin" / "python", HERE / "peer" / "parity_peer.py", stage, folder, *words)
        return folder

    def described(self, plans: str = "Plain", **changes: object) -> Description:
        found, dataset = read(self.plans(plans)), read(self.raw / "dataset.json") | changes
        return Description(self.planned, found, dataset, read(self.planned / "dataset_fingerprint.json"))

    def plan(self, plans: str = "Plain", **changes: object) -> tuple[Plan, Configuration]:
        dims = len(read(self.plans(plans))["configurations"][self.configuration]["patch_size"])
        made = plan_of(self.described(plans, **changes), self.configuration, range(dims), 1000)
        return made, made.configurations[self.configuration]

    @cached_property
    def cases(self) -> list[Case]:
        """The training set, sorted."""
        found: dict[str, list[str]] = {}
        for path in sorted((self.raw / "imagesTr").iterdir()):
            found.setdefault(path.name.split(".")[0][: -len("_0000")], []).append(str(path))
        labels = {path.name.split(".")[0]: str(path) for path in (self.raw / "labelsTr").iterdir()}
        return [Case(name, name, tuple(files), labels[name]) for name, files in sorted(found.items())]

    def prepared(self, number: int | None = CASES) -> Iterator[tuple[Case, Prepared]]:
        """The first cases of the training set as autoseg prepares them; None: all."""
        plan, configuration = self.plan()
        for case in self.cases[:number]:
            loaded = load_case(
                case, plan.labels, channels=plan.channels, orientation=plan.orientation, axis_order=plan.axis_order
            )
            yield case, prepare(loaded.image, loaded.target, loaded.spacing, plan, configuration, case.id)


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def write_hippocampus(data: Path, raw: Path) -> None:
    shutil.copytree(data / "hippocampus", raw, ignore=shutil.ignore_patterns("*Ts", "*.csv"))


def write_axons(data: Path, raw: Path) -> None:
    write_for_peer(data / "axon_sem", raw)


def write_thick(data: Path, raw: Path) -> None:
    """Volumes of few thick slices: every third to sixth slice of a third of each head, at spacings that vary."""
    images = sorted((data / "ms_lesion_mni" / "images").glob("*_0000.nii.gz"))
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    for number in range(CASES):
        source = images[number % len(images)]
        name, every, first = source.name.split("_0000")[0], 3 + number % 4, 20 + 5 * (number // 3)
        zoom = (1.0, 1.1, 0.8, 0.95)[number % 4]
        keep = (slice(None), slice(30, 190), slice(first, first + 100, every))
        files = [(source.with_name(f"{name}_{c:04d}.nii.gz"), f"imagesTr/case{number:02d}_{c:04d}") for c in range(4)]
        files += [(data / "ms_lesion_mni" / "labels" / f"{name}.nii.gz", f"labelsTr/case{number:02d}")]
        for file, target in files:
            array = np.asarray(nib.load(file).dataobj)[keep]
            affine = np.diag([zoom, zoom, float(every), 1.0])
            nib.save(nib.Nifti1Image(array.astype(np.float32 if "images" in target else np.uint8), affine),
                     raw / f"{target}.nii.gz")  # fmt: skip
    channels = {str(n): name for n, name in enumerate(("FLAIR", "T1", "T1Gd", "T2"))}
    description = {
        "channel_names": channels, "labels": {"background": 0, "lesion": 1}, "numTraining": CASES,
        "file_ending": ".nii.gz",
    }  # fmt: skip
    (raw / "dataset.json").write_text(json.dumps(description), encoding="utf-8")


WRITERS = {"hippocampus": write_hippocampus, "ms_thick": write_thick, "axon_sem": write_axons}
