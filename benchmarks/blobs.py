"""Write the synthetic volumes of touching blobs that instances in three dimensions are measured on.

    python benchmarks/blobs.py --out FOLDER [--cases 40]

`FOLDER/images` and `FOLDER/labels` hold NIfTI files; the labels have one value per object (autoseg/demo/blobs.py).
"""

import argparse
from pathlib import Path

from autoseg.demo.blobs import make_blobs, write_blobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=40)
    options = parser.parse_args()
    write_blobs(options.out, cases=options.cases)
    made = [make_blobs(number) for number in range(options.cases)]
    objects = sum(len(one.bodies) for one in made)
    touching = sum(len({k for pair in one.touching for k in pair}) for one in made)
    print(f"{options.cases} volumes, {objects} objects, {touching} of which touch another")


if __name__ == "__main__":
    main()
