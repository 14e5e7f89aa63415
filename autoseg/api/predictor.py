"""A model that is loaded once and segments arrays: `autoseg.Predictor`."""

from typing import Any, Literal

import numpy as np

from autoseg.api.keywords import File, FoldNames, Names, Say, as_path, checked, in_workspace, lines_to, options_of
from autoseg.errors import UsageError
from autoseg.inference.options import SpeedName
from autoseg.lines import LOG

OF_FILES: dict[str, Any] = {  # options of `predict_images` that concern files, as they are by default
    "shard": None, "resume": False, "format": None, "probabilities": False, "uncertainty": False, "statistics": False,
    "patients": None, "coco": False, "saliency": (), "saliency_stage": None, "saliency_method": None,
}  # fmt: skip


class Refinement:
    """The segmentation of one image, corrected prompt by prompt: what `Predictor.refine` returns.

    A label is named, or given by its value in files; "background" is the label of what has none. Voxels are (z, y, x)
    in the order of the array, (y, x) of a flat image.
    """

    def __init__(self, corrected: Any, plan: Any) -> None:
        self._corrected, self._plan = corrected, plan

    @property
    def labels(self) -> "np.ndarray":
        """The segmentation as it is now: of the array's spatial shape, with the values that label files have."""
        return self._corrected.labels

    @property
    def prompts(self) -> int:
        """How many prompts stand."""
        return len(self._corrected.prompts)

    @checked
    def click(self, at: tuple[int, ...], label: str | int) -> None:
        """Say that a voxel has a label. Raises AutosegError: it lies outside, or there is no such label."""
        self._add("click", (at,), label)

    @checked
    def scribble(self, points: Any, label: str | int) -> None:
        """Say that the voxels on straight lines from point to point have a label. Raises as `click`."""
        try:
            line = tuple(tuple(int(i) for i in point) for point in points)
        except (TypeError, ValueError):
            raise UsageError(
                f"points: expected voxels, found {points!r}", remedy="write [(30, 41, 22), (30, 48, 25)]"
            ) from None
        self._add("scribble", line, label)

    @checked
    def box(self, first: tuple[int, ...], last: tuple[int, ...], label: str | int) -> None:
        """Say that an object of a label lies in a box, from its first to its last voxel. Raises as `click`."""
        self._add("box", (first, last), label)

    def undo(self) -> bool:
        """Take back the last prompt; returns whether there was one."""
        return self._corrected.undo()

    def _add(self, kind: Any, points: tuple[tuple[int, ...], ...], label: str | int) -> None:
        from autoseg.commands.refine import AskedPrompt

        self._corrected.add(AskedPrompt(kind, points, str(label)).of(self._plan.labels))


class Predictor:
    """Load a model once, and segment arrays with it: no files, no processes.

    `predict` returns what `autoseg predict` writes for a file that holds the array. It may be called from several
    threads; one call at a time computes. As a context manager it releases the memory at the end.

    Args:
        path: a workspace with trained folds, or a file that `autoseg export` has written: "model.zip".
        configuration, network: of the model; None: the recommended one, as planned.
        models: or models to average, as their folders are called: ["3d_fullres-unet", "2d-unet"].
        folds: that form the ensemble; None: all that are trained.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        speed: "accurate", "balanced" or "fast"; None: accurate. `step` and `mirroring` have precedence.
        step: distance of tiles as a share of the tile; None: by the speed.
        mirroring: average over flips; None: by the speed.
        unfinished: also use folds that are not trained to the end.
        tile: longest edges of tiles as a multiple of the training patch's; None: as suits the device.
        top_k: share of a cascade's tiles to compute, the most worthwhile ones; None: all.
        skip_empty: leave out tiles that hold hardly anything brighter than the background.
        decision: apply what `choose_decision` chose on held-out cases.
        say: what shows a line, such as a warning about an image; None: nothing is shown.

    Raises:
        AutosegError: no such model is trained, or the models cannot be combined.

    Example:
        >>> with autoseg.Predictor("ws", folds=[0]) as predictor:
        >>>     labels = predictor.predict(array, spacing=(1.0, 0.8, 0.8))

    Its attributes: `channels` of the images it takes, in order; `labels` by name with their values; `heads`, what
    probabilities are of, in order.
    """

    @checked
    def __init__(
        self,
        path: File,
        configuration: str | None = None,
        *,
        network: str | None = None,
        models: Names = (),
        folds: FoldNames | None = None,
        device: str = "auto",
        speed: SpeedName | None = None,
        step: float | None = None,
        mirroring: bool | None = None,
        unfinished: bool = False,
        tile: float | None = None,
        top_k: float | None = None,
        skip_empty: bool = False,
        decision: bool = True,
        say: Say | None = print,
    ) -> None:
        from autoseg.commands.predict import PredictOptions, open_predictor

        self._say = say
        options = options_of(PredictOptions, locals() | OF_FILES)
        self._arrays = open_predictor(in_workspace(as_path(path)), options)
        plan = self._arrays.plan
        self.channels: tuple[str, ...] = plan.channels
        self.labels: dict[str, int] = dict(plan.labels.values)
        regions = tuple(plan.heads.regions)
        self.heads: tuple[str, ...] = regions or ("background", *plan.labels.values)

    @checked
    def predict(
        self, array: Any, spacing: Any = None, orientation: str = "LPS", *, probabilities: bool = False
    ) -> "np.ndarray | tuple[np.ndarray, np.ndarray]":
        """Segment one image.

        Args:
            array: numbers, (C, Z, Y, X), or (Z, Y, X) of one channel; for a model of flat images (C, Y, X), or (Y, X)
                of one channel. Axes are in the order in which SimpleITK's arrays have them; those of nibabel are
                reversed: `image.get_fdata().T`.
            spacing: mm, one number for each spatial axis in the order of the array; None where the training images
                stated no voxel size.
            orientation: where the x, y and z indices grow, as three letters, such as "RAS"; "LPS" is how networks see
                images: to the patient's left, back and head. Flat images have none.
            probabilities: return them, too.

        Returns:
            Labels of the array's spatial shape, with the values that label files have. With `probabilities`, a pair
            of them and of the probabilities (K, *spatial) float32, one per entry of `heads`.

        Raises:
            AutosegError: another form than the model needs, NaN or infinity, an image unlike the training data, or
                the predictor was closed.
        """
        made = self._arrays.segment(array, spacing, orientation, probabilities=probabilities)
        with lines_to(self._say):
            for remark in made.remarks:
                LOG.warning(f"warning: {remark.what} ({remark.remedy})")
        return made.labels if made.probabilities is None else (made.labels, made.probabilities)

    @checked
    def saliency(
        self,
        array: Any,
        spacing: Any = None,
        orientation: str = "LPS",
        *,
        label: str,
        at: tuple[int, ...] | None = None,
        stage: str = "bottleneck",
        method: Literal["grad_cam", "hires_cam"] | None = None,
    ) -> dict[str, np.ndarray]:
        """Show where the networks looked for a label in one image.

        Args:
            array, spacing, orientation: as for `predict`.
            label: one of `heads`.
            at: voxel (z, y, x) of the array about which it is explained, (y, x) of a flat one; None: all voxels that
                are given the label.
            stage: by which layer: "bottleneck", "decoder", or an encoder stage: "0".
            method: how its features are weighted; None: as suits the layer.

        Returns:
            Maps of the array's spatial shape, float32 from 0 to 1: "saliency", and those of the attention that the
            networks have, such as "gate_0".

        Raises:
            AutosegError: as for `predict`; no such label or stage, or a voxel outside the array.
        """
        from autoseg.inference.saliency import Asked, How

        found = self._arrays.saliency(array, spacing, orientation, asked=Asked(label, at), how=How(stage, method))
        with lines_to(self._say):
            for remark in found.remarks:
                LOG.warning(f"warning: {remark.what} ({remark.remedy})")
            if found.note:
                LOG.info(f"note: {found.note}")
        return found.maps

    @checked
    def refine(
        self,
        array: Any,
        spacing: Any = None,
        orientation: str = "LPS",
        *,
        mask: Any = None,
        clicks: Any = (),
    ) -> "Refinement":
        """Begin to correct the segmentation of one image by prompts. The model must be one that has them.

        Args:
            array, spacing, orientation: as for `predict`.
            mask: the segmentation to correct, with the values of label files; None: the automatic one.
            clicks: the first ones: (voxel, label) each, as for `Refinement.click`.

        Returns:
            The correction, whose `labels` are the segmentation as it is now.

        Raises:
            AutosegError: as for `predict`; the mask does not fit, or the model was trained without prompts.

        Example:
            >>> with autoseg.Predictor("ws", "3d_fullres_prompts") as predictor:
            >>>     correction = predictor.refine(array, spacing=(1.0, 0.8, 0.8), clicks=[((30, 41, 22), "liver")])
            >>>     correction.click((28, 60, 31), "background")
            >>>     correction.undo()
            >>>     labels = correction.labels
        """
        correction = Refinement(self._arrays.refine(array, spacing, orientation, mask=mask), self._arrays.plan)
        try:
            first = [(at, label) for at, label in clicks]
        except (TypeError, ValueError):
            raise UsageError(
                f"clicks: expected pairs of a voxel and a label, found {clicks!r}",
                remedy='write clicks=[((30, 41, 22), "liver")]',
            ) from None
        for at, label in first:
            correction.click(at, label)
        return correction

    def close(self) -> None:
        """Release the model and its memory. `predict` then raises an AutosegError."""
        self._arrays.release()

    def __enter__(self) -> "Predictor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
