"""The one table of augmentation: names, probabilities and ranges. Numbers only; every chain reads them here.

Source: nnU-Net v2's default chain, in its order; elastic deformation and colour jitter are ours. A range `(low, high)`
is drawn uniformly unless a comment says otherwise. `two_sided` ranges draw below 1 and above 1 with equal probability.
`Training.augmentation` of a plan names one of the strengths in `AUGMENTATIONS`.
"""

from dataclasses import dataclass

ANISOTROPIC = 3  # longest over first axis of a patch beyond which nothing is rotated, scaled or deformed across slices
OBLONG = 1.5  # longest over shortest axis of a 2-D patch beyond which it is rotated by small angles only
ELASTIC_INTERVALS = 4  # distances between control points along the longest axis of the patch


@dataclass(frozen=True)
class Augmentation:
    """Probabilities per sample, and ranges, of each transform in the order they are applied."""

    rotation: float = 0.2
    rotation_degrees_3d: float = 30.0  # about each axis, +-
    rotation_degrees_2d: float = 180.0  # in plane, +-; also for the planes of anisotropic patches
    rotation_degrees_2d_oblong: float = 15.0  # 2-D patches longer than 1.5 times their width
    scaling: float = 0.2
    scaling_range: tuple[float, float] = (0.7, 1.4)  # one factor for all axes
    elastic: float = 0.0
    elastic_magnitude: tuple[float, float] = (0.0, 0.1)  # displacement std as a share of the control-point distance
    noise: float = 0.1
    noise_std: tuple[float, float] = (0.0, 0.1)  # one std for all channels
    blur: float = 0.2
    blur_per_channel: float = 0.5
    blur_sigma: tuple[float, float] = (0.5, 1.0)  # voxels
    brightness: float = 0.15
    brightness_range: tuple[float, float] = (0.75, 1.25)  # two_sided, multiplicative, per channel
    contrast: float = 0.15
    contrast_range: tuple[float, float] = (0.75, 1.25)  # two_sided, about the channel mean, old range kept
    low_resolution: float = 0.25
    low_resolution_per_channel: float = 0.5
    low_resolution_zoom: tuple[float, float] = (0.5, 1.0)
    gamma_inverted: float = 0.1
    gamma: float = 0.3
    gamma_range: tuple[float, float] = (0.7, 1.5)  # two_sided; mean and std are kept
    colour: float = 0.0  # colour jitter, RGB images only
    colour_hue: float = 0.05  # +- share of the colour circle
    colour_saturation: tuple[float, float] = (0.7, 1.3)
    mirroring: float = 0.5  # per axis in mirror_axes
    # of the previous stage's segmentation, in a cascade
    operation: float = 0.4  # dilate, erode, open or close, one drawn for each label
    operation_per_label: float = 0.5
    operation_radius: tuple[int, int] = (1, 8)  # voxels, of a ball; both ends included
    removal: float = 0.2  # of a random connected component
    removal_per_label: float = 0.5
    removal_share: float = 0.15  # of the patch: components that cover as much or more stay
    # of two samples of a batch; in the device chain alone
    cutmix: float = 0.0  # a box of the patch comes from the other sample, image and target
    cutmix_share: tuple[float, float] = (0.05, 0.5)  # of the patch that the box covers
    mixup: float = 0.0  # the other image shines through; the target stays that of the stronger image
    mixup_share: tuple[float, float] = (0.0, 0.3)  # of the other image
    paste: float = 0.0  # a foreground component of the other sample appears somewhere in this one
    paste_window: float = 0.25  # of each edge of the patch: what a component may cover


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(
        rotation=0, scaling=0, noise=0, blur=0, brightness=0, contrast=0, low_resolution=0, gamma_inverted=0, gamma=0,
        mirroring=0, operation=0, removal=0,
    ),
    "mirror": Augmentation(
        rotation=0, scaling=0, noise=0, blur=0, brightness=0, contrast=0, low_resolution=0, gamma_inverted=0, gamma=0,
        operation=0, removal=0,
    ),
    "nnunet": Augmentation(),
    "default": Augmentation(elastic=0.2, colour=0.3),
    "sparse": Augmentation(elastic=0.2, colour=0.3, cutmix=0.2, mixup=0.1, paste=0.3),  # chains in torch alone
}  # fmt: skip
