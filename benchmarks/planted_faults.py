"""Eleven faults planted in one folder, and what `autoseg check` says of them.

    python benchmarks/planted_faults.py

Writes a tiny dataset in nnU-Net's layout to a temporary folder, damages eleven cases in eleven ways, and runs the
command. Exits non-zero unless all are named with their file and the command ends with exit code 3.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from phantom import tiny_dataset

FAULTS = {
    "case_00": "truncated image",
    "case_01": "label of another shape",
    "case_02": "label of another spacing",
    "case_03": "label with another origin",
    "case_04": "NaN in the image",
    "case_05": "unexpected label value",
    "case_06": "missing channel",
    "case_07": "missing label",
    "case_08": "Git LFS pointer",
    "case_09": "empty label",
    "case_10": "constant image",
}


def rewrite(path: Path, change) -> None:
    """Load a NIfTI, let `change` alter (array, affine), and write it again."""
    image = nibabel.load(path)
    array, affine = change(np.asarray(image.dataobj), image.affine.copy())
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def shifted(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    affine[:3, 3] += 5
    return array, affine


def stretched(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    affine[:3, :3] *= 1.5
    return array, affine


def with_nan(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    array = array.astype(np.float32)
    array[1, 2, 3] = np.nan
    return array, affine


def with_nine(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    array = array.copy()
    array[0, 0, 0] = 9
    return array, affine


def plant(folder: Path) -> None:
    """Write the dataset to a new folder, and damage it."""
    tiny_dataset(folder, cases=13, channels=2)
    image = {case: folder / "imagesTr" / f"{case}_0000.nii.gz" for case in FAULTS}
    label = {case: folder / "labelsTr" / f"{case}.nii.gz" for case in FAULTS}
    image["case_00"].write_bytes(image["case_00"].read_bytes()[:900])
    rewrite(label["case_01"], lambda array, affine: (array[:-2], affine))
    rewrite(label["case_02"], stretched)
    rewrite(label["case_03"], shifted)
    rewrite(image["case_04"], with_nan)
    rewrite(label["case_05"], with_nine)
    (folder / "imagesTr" / "case_06_0001.nii.gz").unlink()
    label["case_07"].unlink()
    image["case_08"].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234\n")
    rewrite(label["case_09"], lambda array, affine: (array * 0, affine))
    rewrite(image["case_10"], lambda array, affine: (array * 0 + 7, affine))


def main() -> int:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "data"
        plant(folder)
        command = [str(Path(sys.executable).parent / "autoseg"), "check", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(done.stdout.replace(str(Path(temporary)), ""), done.stderr, sep="")
        missed = [f"{case} ({fault})" for case, fault in FAULTS.items() if case not in done.stdout]
        print(f"exit code {done.returncode}; not named: {', '.join(missed) or 'none'}")
        return 0 if done.returncode == 3 and not missed else 1


if __name__ == "__main__":
    raise SystemExit(main())
