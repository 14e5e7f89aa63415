"""StarDist's and Cellpose's side of benchmarks/nuclei_peers.py: trained from scratch, then maps of the held-out images.

    python instances_peer.py stardist|cellpose DATA SPLIT.json OUT --minutes 15 [--threads 2]

Runs with their Python, without autoseg. DATA has `images` and `labels` (PNG, one value per object); SPLIT.json is
{"train": [names], "held_out": [names]}. Writes `OUT/maps/NAME.png` (16 bits) and `OUT/run.json`: version, settings,
steps and seconds. The minutes are those of the training loop alone: preparing data, choosing thresholds and sizes come
on top, and `run.json` states them.
"""

import argparse
import json
import os
import time
from importlib.metadata import version
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("peer", choices=("stardist", "cellpose"))
parser.add_argument("data", type=Path)
parser.add_argument("split", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--minutes", type=float, default=15)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--held-out", type=int, default=None, help="only so many held-out images, to try it")
OPTIONS = parser.parse_args()
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
    os.environ[variable] = str(OPTIONS.threads)  # before they are imported

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402


def read(folder: str, names: list[str]) -> list[np.ndarray]:
    return [np.array(Image.open(OPTIONS.data / folder / f"{name}.png")) for name in names]


def write(name: str, objects: np.ndarray) -> None:
    path = OPTIONS.out / "maps" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(objects.astype(np.uint16)).save(path)


def stardist(train: list[str], held_out: list[str]) -> dict:
    """As in the notebooks of its repository (examples/2D): their settings, augmentation and thresholds."""
    import keras
    from csbdeep.utils import normalize
    from stardist import fill_label_holes
    from stardist.models import Config2D, StarDist2D

    def prepared(names: list[str]) -> list[np.ndarray]:
        return [normalize(image.astype(np.float32), 1, 99.8, axis=(0, 1)) for image in read("images", names)]

    rng = np.random.default_rng(42)
    order = rng.permutation(len(train))
    count = round(0.15 * len(train))  # of the training images, to watch and to choose thresholds
    watched, fitted = ([train[i] for i in part] for part in (order[:count], order[count:]))
    images, labels = prepared(fitted), [fill_label_holes(array) for array in read("labels", fitted)]
    watched_images, watched_labels = prepared(watched), [fill_label_holes(a) for a in read("labels", watched)]

    def augmented(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if rng.random() < 0.5:
            x, y = x.swapaxes(0, 1), y.swapaxes(0, 1)
        for axis in (0, 1):
            if rng.random() < 0.5:
                x, y = np.flip(x, axis), np.flip(y, axis)
        x = x * rng.uniform(0.6, 2) + rng.uniform(-0.2, 0.2)
        return x + 0.02 * rng.uniform(0, 1) * rng.normal(0, 1, x.shape), y

    class Clock(keras.callbacks.Callback):
        """Ends the training when its time is over, and counts its steps."""

        def on_train_begin(self, logs: dict | None = None) -> None:
            self.began, self.steps, self.seconds = time.perf_counter(), 0, 0.0

        def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
            self.steps += 1
            self.seconds = time.perf_counter() - self.began
            if self.seconds > 60 * OPTIONS.minutes:
                self.model.stop_training = True

        def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
            self.seconds = time.perf_counter() - self.began  # with the watched images

    settings = {"n_rays": 32, "grid": (2, 2), "train_patch_size": (256, 256), "train_batch_size": 4}
    config = Config2D(
        n_channel_in=1, use_gpu=False, train_learning_rate=3e-4, train_steps_per_epoch=100, train_epochs=400,
        train_tensorboard=False, **settings,
    )  # fmt: skip
    model = StarDist2D(config, name="stardist", basedir=str(OPTIONS.out))
    model.prepare_for_training()
    clock = Clock()
    model.callbacks.append(clock)
    model.train(images, labels, validation_data=(watched_images, watched_labels), augmenter=augmented)
    began = time.perf_counter()
    thresholds = model.optimize_thresholds(watched_images, watched_labels)
    chosen = time.perf_counter() - began
    began = time.perf_counter()
    for name, image in zip(held_out, prepared(held_out), strict=True):
        write(name, model.predict_instances(image)[0])
    return {
        "steps": clock.steps, "training_seconds": clock.seconds, "threshold_seconds": chosen,
        "prediction_seconds": time.perf_counter() - began, "settings": {**settings, "thresholds": {**thresholds}},
        "versions": {name: version(name) for name in ("stardist", "csbdeep", "tensorflow_cpu")},
    }  # fmt: skip


def cellpose(train: list[str], held_out: list[str]) -> dict:
    """With the defaults of its command line for a training from scratch, and its size model, as for nuclei.

    Epochs are short (`nimg_per_epoch`), so that its schedule of more than 100 epochs, with a warm-up of 10 and a decay
    over the last 50, spans the time.
    """
    import torch
    from cellpose import models
    from cellpose import train as training

    torch.set_num_threads(OPTIONS.threads)
    images, labels = read("images", train), [array.astype(np.int32) for array in read("labels", train)]
    settings = {"learning_rate": 0.2, "weight_decay": 1e-5, "SGD": True, "batch_size": 8, "nimg_per_epoch": 64}
    model = models.CellposeModel(gpu=False, pretrained_model=None, diam_mean=17.0, nchan=2)

    def fit(network: torch.nn.Module, epochs: int) -> tuple[str, float, int]:
        """Train; the seconds of its loop, which begins with the optimiser."""
        marks: list[float] = []
        original = torch.optim.SGD

        def marked(*arguments, **keywords):
            marks.append(time.perf_counter())
            return original(*arguments, **keywords)

        torch.optim.SGD = marked
        try:
            path, *_ = training.train_seg(
                network, images, labels, channels=[0, 0], n_epochs=epochs, save_path=OPTIONS.out, model_name="model",
                **settings,
            )  # fmt: skip
        finally:
            torch.optim.SGD = original
        return str(path), time.perf_counter() - marks[0], epochs * settings["nimg_per_epoch"] // settings["batch_size"]

    spare = models.CellposeModel(gpu=False, pretrained_model=None, diam_mean=17.0, nchan=2)
    _, seconds, _ = fit(spare.net, 2)
    epochs = max(round(60 * OPTIONS.minutes / (seconds / 2)), 1)
    path, seconds, steps = fit(model.net, epochs)
    model.pretrained_model = path
    model.diam_labels = float(model.net.diam_labels.item())
    began = time.perf_counter()
    sizes = models.SizeModel(cp_model=model, device=model.device)
    sizes.params = training.train_size(model.net, path, images, labels, channels=[0, 0], batch_size=8, n_epochs=2)
    sized = time.perf_counter() - began
    began = time.perf_counter()
    for name, image in zip(held_out, read("images", held_out), strict=True):
        diameter, _ = sizes.eval(image, channels=[0, 0])
        write(name, model.eval(image, channels=[0, 0], diameter=float(diameter))[0])
    return {
        "steps": steps, "epochs": epochs, "training_seconds": seconds, "size_seconds": sized,
        "prediction_seconds": time.perf_counter() - began, "settings": settings | {"diam_mean": 17.0},
        "versions": {name: version(name) for name in ("cellpose", "torch")},
    }  # fmt: skip


def main() -> None:
    split = json.loads(OPTIONS.split.read_text(encoding="utf-8"))
    OPTIONS.out.mkdir(parents=True, exist_ok=True)
    found = {"stardist": stardist, "cellpose": cellpose}[OPTIONS.peer](
        split["train"], split["held_out"][: OPTIONS.held_out]
    )
    found = {"name": OPTIONS.peer, "minutes": OPTIONS.minutes, "threads": OPTIONS.threads} | found
    (OPTIONS.out / "run.json").write_text(json.dumps(found, indent=1, default=float), encoding="utf-8")
    print(json.dumps(found, default=float))


if __name__ == "__main__":
    main()
