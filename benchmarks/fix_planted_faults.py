"""Eight faults planted in one folder, and what `autoseg check --fix` makes of them.

    python benchmarks/fix_planted_faults.py

Writes a tiny dataset of two channels in nnU-Net's layout to a temporary folder, plants eight faults that can be mended,
and runs `check`, `check --fix`, and `check` on the copy. Exits non-zero unless the first names faults (exit code 3),
the second mends all (0), the third finds nothing (0), and not a byte of the original has changed.
"""

import gzip
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from phantom import tiny_dataset

FAULTS = {  # file -> fault
    "imagesTr/case_00_0001.nii.gz": "second channel on another grid",
    "labelsTr/case_01.nii.gz": "label stored in another order of axes",
    "labelsTr/case_02.nii.gz": "label 0.05 voxels off",
    "labelsTr/case_03.nii.gz": "label whose header says no place",
    "imagesTr/case_04_0000.nii.gz": "NRRD called .nii.gz",
    "imagesTr/case_05_0001.nii.gz": "packed twice",
    "labelsTr/case_06.nii.gz": "label value 255 for 2",
    "dataset.json": "a key twice, a wrong number of cases",
}


def on_another_grid(path: Path) -> None:
    """Slices twice as thick, pixels of half the size, a place of its own: as FLAIR beside DWI."""
    image = sitk.ReadImage(str(path))
    size, spacing = np.array(image.GetSize()), np.array(image.GetSpacing())
    factors = np.array([0.5, 0.5, 2.0])
    like = sitk.Image(np.ceil(size / factors).astype(int).tolist(), image.GetPixelID())
    like.SetSpacing((spacing * factors).tolist())
    like.SetDirection(image.GetDirection())
    like.SetOrigin(image.TransformContinuousIndexToPhysicalPoint(((factors - 1) / 2).tolist()))
    sitk.WriteImage(sitk.Resample(image, like, sitk.Transform(), sitk.sitkLinear, 0.0), str(path))


def in_another_order(path: Path) -> None:
    """The same voxels at the same places, stored (z, x, y) and with x reversed."""
    image = nibabel.load(path)
    turned = image.as_reoriented(np.array([[1, -1], [2, 1], [0, 1]]))
    nibabel.save(turned, path)


def a_little_off(path: Path) -> None:
    image = nibabel.load(path)
    affine = image.affine.copy()
    affine[0, 3] += 0.05
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), path)


def without_place(path: Path) -> None:
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[252:328] = bytes(76)  # both form codes, quaternion, offsets and rows of the affine
    path.write_bytes(gzip.compress(bytes(raw)))


def called_otherwise(path: Path) -> None:
    temporary = path.with_name("x.nrrd")
    sitk.WriteImage(sitk.ReadImage(str(path)), str(temporary))
    temporary.replace(path)


def with_other_value(path: Path) -> None:
    image = nibabel.load(path)
    array = np.asarray(image.dataobj).copy()
    array[array == 2] = 255
    nibabel.save(nibabel.Nifti1Image(array, image.affine), path)


def plant(folder: Path) -> None:
    """Damage a sound dataset of nine cases and two channels in the eight ways of FAULTS."""
    paths = [folder / name for name in FAULTS]
    plants = (on_another_grid, in_another_order, a_little_off, without_place, called_otherwise)
    for path, change in zip(paths, plants, strict=False):
        change(path)
    paths[5].write_bytes(gzip.compress(paths[5].read_bytes()))
    with_other_value(paths[6])
    description = json.loads(paths[7].read_text())
    text = json.dumps(description | {"numTraining": 12}, indent=1)
    paths[7].write_text(text.replace('"name": "Tiny",', '"name": "Tiny",\n "name": "Tiny",'))


def digest(folder: Path) -> str:
    """Hash of the names and contents of all files of a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(str(path.relative_to(folder)).encode() + b"\0" + (path.read_bytes() if path.is_file() else b""))
    return found.hexdigest()


def main() -> int:
    with tempfile.TemporaryDirectory() as temporary:
        folder = tiny_dataset(Path(temporary) / "data", cases=9, channels=2)
        plant(folder)
        before = digest(folder)
        codes, told = [], []
        for command in (
            ["check", str(folder)],
            ["check", str(folder), "--fix", str(folder.with_name("fixed")), "--map", "255=2"],
            ["check", str(folder.with_name("fixed"))],
        ):
            done = subprocess.run(
                [sys.executable, "-m", "autoseg", *command], capture_output=True, text=True, check=False
            )
            codes.append(done.returncode)
            told.append(done.stdout)
            print(f"$ autoseg {' '.join(command)}\n{done.stdout}{done.stderr}".replace(temporary, ""))
        unchanged = digest(folder) == before
        missed = [f"{name} ({fault})" for name, fault in FAULTS.items() if name not in told[1]]
        print(f"exit codes {codes}; not mended: {', '.join(missed) or 'none'}; original unchanged: {unchanged}")
        sound = codes == [3, 0, 0] and "no problem was found" in told[2]
        return 0 if sound and unchanged and not missed else 1


if __name__ == "__main__":
    raise SystemExit(main())
