"""Package metadata. Tested versions stand in constraints.txt; here stand the ranges that should work."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "autoseg" / "__init__.py").read_text()).group(1)

setup(
    name="autoseg-med",  # the name autoseg is taken on the package index; package and command keep it
    version=VERSION,
    description="Self-configuring segmentation of medical images: plan, five-fold training, ensemble prediction",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["autoseg", "autoseg.*"]),
    package_data={"autoseg.report": ["templates/*", "vendor/*"], "autoseg.serve": ["page/*"]},
    install_requires=[
        "torch>=2.10",  # earlier versions load weights unsafely
        "numpy>=1.26",
        "scipy>=1.11",
        "SimpleITK>=2.4",
        "nibabel>=5.2",
        "pillow>=10",
        "tifffile>=2023.7",
        "batchgenerators>=0.25.5",  # earlier versions resample labels differently
        "tqdm>=4.66",
        "matplotlib>=3.10",  # boxplot takes orientation
        "jinja2>=3.1",
        "filelock>=3.13",
        "psutil>=5.9",
        "threadpoolctl>=3",
    ],
    extras_require={
        "tensorboard": ["tensorboard"],
        "dicom": ["pydicom>=3.0.2", "highdicom"],
        "onnx": ["onnx", "onnxruntime", "onnxscript"],
        "slurm": ["submitit"],
        "serve": ["starlette>=0.40", "uvicorn>=0.30"],
        "dev": [
            "pytest>=9",  # subtests
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "mypy",
            "scikit-learn",
            "scikit-image",
            "safetensors",
            "pydicom>=3.0.2",
            "highdicom",
            "onnx",
            "onnxruntime",
            "onnxscript",
            "tensorboard",
            "submitit",
            "starlette>=0.40",
            "uvicorn>=0.30",
        ],
    },
    entry_points={"console_scripts": ["autoseg = autoseg.cli:main"]},
)
