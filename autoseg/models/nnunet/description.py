"""The JSON files of a trained nnU-Net v2 model: plans.json, dataset.json and dataset_fingerprint.json, as they are.

Source: nnU-Net v2.8.1 (plans_handler), and the plans of its earlier versions, which have no `architecture`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoseg.datasets.contents import read_json
from autoseg.errors import DataError, StateError

PLANS, DATASET, FINGERPRINT = "plans.json", "dataset.json", "dataset_fingerprint.json"
EPSILON = 1e-5  # of the instance normalisation


@dataclass(frozen=True)
class Description:
    """The JSON files of a trained model."""

    folder: Path
    plans: dict[str, Any]
    dataset: dict[str, Any]
    fingerprint: dict[str, Any] | None

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels, in order."""
        names = self.dataset.get("channel_names", self.dataset.get("modality"))
        if not isinstance(names, dict) or sorted(names) != sorted(map(str, range(len(names)))) or not names:
            raise self.refused(DATASET, f"channel_names numbers the channels from 0, found {names!r}")
        return tuple(str(names[key]) for key in sorted(names, key=int))

    @property
    def name(self) -> str:
        """Of the dataset it was trained on."""
        return str(self.plans.get("dataset_name") or self.dataset.get("name") or self.folder.parent.name)

    def refused(self, file: str, why: str, remedy: str = "") -> StateError:
        """An error about one of the files: why the model cannot be imported."""
        return StateError(
            f"{self.folder / file}: this model cannot be imported: {why}",
            remedy=remedy or "predict with nnU-Net itself, or train the dataset with autoseg",
        )


def describe(folder: Path) -> Description:
    """Read the JSON files of a trained model's folder.

    Raises:
        StateError: one is missing, or is not a JSON object.
    """
    found: dict[str, Any] = {}
    for name in (PLANS, DATASET, FINGERPRINT):
        path = folder / name
        if not path.is_file():
            if name == FINGERPRINT:
                continue
            raise StateError(
                f"{folder} holds no {name}, so it is not the folder of a trained nnU-Net v2 model",
                remedy="name the folder that holds plans.json, dataset.json and fold_0, such as "
                "nnUNet_results/Dataset001_NAME/nnUNetTrainer__nnUNetPlans__3d_fullres",
            )
        try:
            found[name] = read_json(path)
        except DataError as error:
            raise StateError(error.what, remedy="copy the model again") from None
        if not isinstance(found[name], dict):
            raise StateError(f"{path} is not a JSON object", remedy="copy the model again")
    return Description(folder, found[PLANS], found[DATASET], found.get(FINGERPRINT))


def configuration_of(described: Description, name: str) -> dict[str, Any]:
    """One configuration, with all that it inherits, and with an `architecture` if it is of an older version.

    Raises:
        StateError: there is no such configuration, or it inherits from itself.
    """
    listed = described.plans.get("configurations")
    configurations: dict[str, Any] = listed if isinstance(listed, dict) else {}
    chain: list[dict[str, Any]] = []
    seen: list[Any] = []
    here: Any = name
    while here is not None:
        if not isinstance(here, str) or not isinstance(configurations.get(here), dict) or here in seen:
            what = f"inherits_from leads from {seen[-1]!r} to {here!r}" if seen else f"there is no {here!r}"
            raise described.refused(PLANS, f"configurations: {what}", "copy the model again")
        seen.append(here)
        chain.append(configurations[here])
        here = chain[-1].get("inherits_from")
    found: dict[str, Any] = {}
    for part in reversed(chain):
        found |= part
    return found if "architecture" in found else found | {"architecture": _older_architecture(described, found)}


def _older_architecture(described: Description, found: Mapping[str, Any]) -> dict[str, Any]:
    """The `architecture` of plans that nnU-Net wrote before it had one (v2.0 to v2.4)."""
    try:
        residual = found["UNet_class_name"] == "ResidualEncoderUNet"
        dims, encoder = len(found["patch_size"]), found["n_conv_per_stage_encoder"]
        base, most = found["UNet_base_num_features"], found["unet_max_num_features"]
        return {
            "network_class_name": found["UNet_class_name"],
            "arch_kwargs": {
                "n_stages": len(encoder),
                "features_per_stage": [min(base * 2**stage, most) for stage in range(len(encoder))],
                "conv_op": f"Conv{dims}d", "norm_op": f"InstanceNorm{dims}d", "nonlin": "LeakyReLU",
                "norm_op_kwargs": {"eps": EPSILON, "affine": True}, "conv_bias": True,
                "kernel_sizes": found["conv_kernel_sizes"], "strides": found["pool_op_kernel_sizes"],
                "n_blocks_per_stage" if residual else "n_conv_per_stage": encoder,
                "n_conv_per_stage_decoder": found["n_conv_per_stage_decoder"],
            },
        }  # fmt: skip
    except (KeyError, TypeError) as error:
        raise described.refused(PLANS, f"a configuration has no architecture, and lacks {error}") from None
