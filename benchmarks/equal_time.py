"""Equal time: fold 0 trained for so many minutes by autoseg and by nnU-Net v2, on hippocampus and axon_sem.

    python benchmarks/equal_time.py --data DIR --peer PEER_VENV [--minutes 15] [--seeds 0]
        [--datasets hippocampus,axon_sem] [--sides autoseg,sgd,adam,resenc_adam,...] [--test] [--out FOLDER]

DIR holds the datasets; PEER_VENV is a virtual environment with nnunetv2==2.8.1. Both sides plan and preprocess by
themselves, untimed, and train on the same cases: the peer is given autoseg's split by patient. Both are scored by
`autoseg evaluate` on the cases that fold 0 holds out, and with `--test` hippocampus also on its test cases.

- autoseg: `plan` and `train -f 0 --time-budget` as they are; the budget includes start-up and the prediction of the
  held-out cases.
- nnU-Net: its full-resolution configuration (`3d_fullres`, `2d`), all cores as threads, two processes for augmentation
  (what it takes by itself on two cores, no slower than one: training_step.py). The time is that of its training loop
  alone. Its schedule spans the time (benchmarks/peer/timed_trainer.py). `sgd` is its default, `adam` the variant it
  ships with AdamW; `resenc_adam` trains the preset ResEnc M with that, which its documentation recommends instead of
  the default plan. `adam_1gb` to `adam_0.125gb` train the plans that its own planner makes for so
  little memory (`-gpu_memory_target`): smaller steps, of which a CPU makes more. On a CPU it has neither autocast nor
  compilation.

Means are over cases, with the half width of their 95 % interval; the difference of a side to autoseg is paired by case.
Finished runs stand in runs.jsonl in the folder `--out` and are not repeated.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import autoseg, dice_per_case, steps_done
from scipy import stats

HERE = Path(__file__).parent
LABELS = {"hippocampus": [], "axon_sem": ["--labels", "myelin=1,axon=2"]}
PEER = {"hippocampus": (5, "Hippocampus", "3d_fullres"), "axon_sem": (6, "Axons", "2d")}
SMALL_GB = ("1", "0.5", "0.25", "0.125")  # memory targets of the peer's small plans
SIDES = {  # of the peer: trainer and plans
    "sgd": ("Timed", "nnUNetPlans"),
    "adam": ("TimedAdam", "nnUNetPlans"),
    "resenc_adam": ("TimedAdam", "nnUNetResEncUNetMPlans"),
    **{f"adam_{gigabytes}gb": ("TimedAdam", f"nnUNetPlans{gigabytes}") for gigabytes in SMALL_GB},
}


def compare(segmentations: Path, references: Path, workspace: Path) -> dict[str, dict[str, float]]:
    """Dice of a folder of segmentations, whichever side made them: label -> case -> Dice."""
    table = segmentations.with_suffix(".csv")
    folders = ["--predictions", segmentations, "--references", references]
    autoseg("evaluate", *folders, "--csv", table, "-w", workspace)
    return dice_per_case(table)


class Contest:
    """One dataset, planned by both sides, with the held-out cases of autoseg's fold 0."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, self.options, self.out = name, options, options.out.resolve() / name
        self.data, self.planned = options.data / name, self.out / "planned"
        self.number, self.title, self.configuration = PEER[name]
        parts = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
        self.environment = {variable: str(self.out / part) for variable, part in parts.items()}
        self.environment |= {
            "nnUNet_extTrainer": str(HERE / "peer"), "nnUNet_compile": "f", "nnUNet_n_proc_DA": "2",
            "AUTOSEG_PEER_SECONDS": str(60 * options.minutes),
        }  # fmt: skip

    @property
    def dataset(self) -> str:
        return f"Dataset{self.number:03d}_{self.title}"

    def peer(self, command: str, *arguments: object) -> None:
        words = [str(word) for word in (self.options.peer / "bin" / f"nnUNetv2_{command}", *arguments)]
        print(f"\n$ {' '.join(words)}", flush=True)
        subprocess.run(words, check=True, env=os.environ | self.environment)

    def prepare(self) -> None:
        """Plan on both sides, and give the peer autoseg's split; what is there is left alone."""
        if (self.out / "references").exists():
            return
        autoseg("plan", self.data, *LABELS[self.name], "-w", self.planned)
        raw = self.out / "raw" / self.dataset
        shutil.rmtree(raw, ignore_errors=True)
        if self.name == "axon_sem":
            write_for_peer(self.data, raw)
        else:
            shutil.copytree(self.data, raw)
        self.peer("plan_and_preprocess", "-d", self.number, "-c", self.configuration, "-np", 2, "-npfp", 2)
        self.peer("plan_experiment", "-d", self.number, "-pl", "nnUNetPlannerResEncM")  # for the same data
        for gigabytes in SMALL_GB:
            name = f"nnUNetPlans{gigabytes}"
            self.peer(
                "plan_experiment", "-d", self.number, "-gpu_memory_target", gigabytes, "-overwrite_plans_name", name
            )
            self.show_plan(name)
        splits = json.loads((self.planned / "splits.json").read_text(encoding="utf-8"))["splits"]
        theirs = [{"train": split["train"], "val": split["validation"]} for split in splits]
        written = self.out / "preprocessed" / self.dataset / "splits_final.json"
        written.write_text(json.dumps(theirs), encoding="utf-8")
        references = self.out / "unfinished"
        references.mkdir(exist_ok=True)
        for path in (raw / "labelsTr").iterdir():
            if path.name.split(".")[0] in splits[0]["validation"]:
                shutil.copy(path, references)
        references.rename(self.out / "references")

    def show_plan(self, name: str) -> None:
        """Print what the peer planned, and let it read the data of its default plan: the spacing is the same.

        Raises:
            SystemExit: it is not.
        """
        folder = self.out / "preprocessed" / self.dataset
        plans, default = (json.loads((folder / f"{n}.json").read_text(encoding="utf-8")) for n in (name, "nnUNetPlans"))
        small, usual = (p["configurations"][self.configuration] for p in (plans, default))
        if small["spacing"] != usual["spacing"]:
            raise SystemExit(f"{name} has another spacing than nnUNetPlans: preprocess for it")
        small["data_identifier"] = usual["data_identifier"]
        (folder / f"{name}.json").write_text(json.dumps(plans, indent=4), encoding="utf-8")
        features = small["architecture"]["arch_kwargs"]["features_per_stage"]
        print(f"{name}: patch {small['patch_size']}, batch {small['batch_size']}, features {features}", flush=True)

    def run_autoseg(self, seed: int) -> tuple[dict, dict, int]:
        workspace = self.out / f"autoseg_{self.options.minutes:g}m_{seed}"
        shutil.rmtree(workspace, ignore_errors=True)
        shutil.copytree(self.planned, workspace)
        budget = ["--time-budget", f"{self.options.minutes:g}m", "--set", f"training.seed={seed}"]
        autoseg("train", "-f", "0", *budget, "-w", workspace)
        (fold,) = (workspace / "models").glob("*/fold_0")
        held_out = compare(fold / "validation", self.out / "references", self.planned)
        test = {}
        if self.tests:
            segmentations = self.out / f"{workspace.name}_test"
            autoseg("predict", "-i", self.data / "imagesTs", "-o", segmentations, "-w", workspace)
            test = compare(segmentations, self.data / "labelsTs", self.planned)
        return held_out, test, steps_done(fold)

    def run_peer(self, side: str) -> tuple[dict, dict, int]:
        trainer, plans = SIDES[side]
        model = self.out / "results" / self.dataset / f"{trainer}__{plans}__{self.configuration}"
        shutil.rmtree(model, ignore_errors=True)
        self.peer("train", self.number, self.configuration, 0, "-device", "cpu", "-tr", trainer, "-p", plans)
        held_out = compare(model / "fold_0" / "validation", self.out / "references", self.planned)
        test = {}
        if self.tests:
            segmentations = self.out / f"{side}_test"
            model_of = ["-d", self.number, "-c", self.configuration, "-tr", trainer, "-p", plans, "-f", 0]
            self.peer("predict", "-i", self.data / "imagesTs", "-o", segmentations, *model_of, "-device", "cpu")
            test = compare(segmentations, self.data / "labelsTs", self.planned)
        (log,) = (model / "fold_0").glob("training_log_*.txt")
        (steps,) = re.findall(r"steps done: (\d+)", log.read_text(encoding="utf-8"))
        return held_out, test, int(steps)

    @property
    def tests(self) -> bool:
        return self.options.test and (self.data / "labelsTs").exists()


def write_for_peer(data: Path, raw: Path) -> None:
    """PNG images in nnU-Net's layout: its names, and its description of the dataset."""
    for folder, theirs, ending in (("images", "imagesTr", "_0000"), ("labels", "labelsTr", "")):
        (raw / theirs).mkdir(parents=True)
        for path in (data / folder).iterdir():
            shutil.copy(path, raw / theirs / f"{path.stem}{ending}{path.suffix}")
    description = {
        "channel_names": {"0": "SEM"}, "labels": {"background": 0, "myelin": 1, "axon": 2},
        "numTraining": len(list((raw / "labelsTr").iterdir())), "file_ending": ".png",
    }  # fmt: skip
    (raw / "dataset.json").write_text(json.dumps(description), encoding="utf-8")


def per_case(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    """Mean over labels of every case."""
    cases = sorted(set.intersection(*(set(found) for found in scores.values())))
    return {case: float(np.mean([found[case] for found in scores.values()])) for case in cases}


def interval(values: Sequence[float]) -> str:
    """Mean and the half width of its 95 % interval, by Student's t over cases."""
    mean = f"{np.mean(values):.4f}"
    if len(values) < 2:
        return mean
    width = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{mean} ± {width:.4f}"


def table(rows: list[dict]) -> str:
    """One line per run, its difference to autoseg of the same seed beside it, paired by case."""
    lines = [
        "| dataset | minutes | side | seed | steps | cases | Dice per label | mean | less than autoseg by |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["dataset"], row["minutes"], row["seed"])):
        same = ("dataset", "minutes", "seed")
        ours = next((r for r in rows if r["side"] == "autoseg" and all(r[k] == row[k] for k in same)), None)
        for kind in ("held_out", "test"):
            if not row[kind]:
                continue
            means = per_case(row[kind])
            labels = ", ".join(f"{label} {np.mean([*found.values()]):.4f}" for label, found in row[kind].items())
            behind = ""
            if ours and ours is not row and ours[kind]:
                reference = per_case(ours[kind])
                behind = interval([reference[case] - means[case] for case in means if case in reference])
            about = f"{row['dataset']} | {row['minutes']:g} | {row['side']} | {row['seed']} | {row['steps']}"
            lines.append(
                f"| {about} | {kind.replace('_', ' ')} ({len(means)}) | {labels} | {interval([*means.values()])} "
                f"| {behind} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seeds", default="0", help="of autoseg; the peer has none to set, and trains as often")
    parser.add_argument("--datasets", default="hippocampus,axon_sem")
    parser.add_argument("--sides", default=",".join(["autoseg", *SIDES]))
    parser.add_argument("--test", action="store_true", help="also score hippocampus' test cases; once, at the end")
    parser.add_argument("--out", type=Path, default=Path("equal_time_run"))
    options = parser.parse_args()
    log = options.out / "runs.jsonl"

    def rows() -> list[dict]:
        return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []

    for name in options.datasets.split(","):
        contest = Contest(name, options)
        contest.prepare()
        for seed in map(int, options.seeds.split(",")):
            for side in options.sides.split(","):
                about = {"dataset": name, "minutes": options.minutes, "side": side, "seed": seed}
                if any(all(row[key] == value for key, value in about.items()) for row in rows()):
                    continue
                held_out, test, steps = contest.run_autoseg(seed) if side == "autoseg" else contest.run_peer(side)
                with open(log, "a", encoding="utf-8") as file:
                    file.write(json.dumps(about | {"held_out": held_out, "test": test, "steps": steps}) + "\n")
    print("\n" + table(rows()))


if __name__ == "__main__":
    main()
