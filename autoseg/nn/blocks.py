"""The parts networks are built from, for 2-D and 3-D alike.

A block never guesses its number of dimensions: `dims` picks the layer from one table. A strided block maps an edge s to
ceil(s / stride), so that any image size works; `fit_to` takes away what upsampling then has too much. `Stage` bounds
what is recomputed when activations are not kept, and what is left out at random.

Normalisation is computed in float32 whatever autocast chooses for the convolutions, because the CPU's autocast would
leave it in bfloat16 where CUDA's would not; its result returns to the dtype of its input, so that memory traffic stays
halved. Pooling and interpolation keep the dtype of their input on both.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class Convolution3d(nn.Conv3d):
    """A 3-D convolution that keeps clear of a fault on CPUs: kernels one slice thick run as 2-D convolutions there.

    With AMX instructions, oneDNN 3.12 (torch 2.13) computes the weight gradients of such kernels in bfloat16 by code
    that writes past its memory at some sizes; the process dies, or worse, does not. Its 2-D code has shown no such
    fault, and turning AMX off would make a step two to three times as slow.
    """

    by_slices = True  # on a CPU in half precision; off where a trace follows another device

    def forward(self, x: Tensor) -> Tensor:
        thick = self.kernel_size[0] > 1
        if thick or not self.by_slices or x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        weight = self.weight.squeeze(2)
        if set(self.kernel_size) == set(self.stride) == {1}:  # any plane works: no copy
            return F.conv2d(x.flatten(3), weight, self.bias, groups=self.groups).unflatten(3, x.shape[3:])
        slices = x[:, :, :: self.stride[0]].transpose(1, 2)
        stride, padding, dilation = self.stride[1:], self.padding[1:], self.dilation[1:]
        convolved = F.conv2d(slices.flatten(0, 1), weight, self.bias, stride, padding, dilation, self.groups)
        return convolved.unflatten(0, slices.shape[:2]).transpose(1, 2).contiguous()


CONVOLUTIONS: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: Convolution3d}
TRANSPOSED_CONVOLUTIONS: dict[int, type[nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
FEATURE_DROPOUTS = {1: F.dropout1d, 2: F.dropout2d, 3: F.dropout3d}  # 1: of queries (B, Q, C), each as a whole
LINEAR_MODES = {2: "bilinear", 3: "trilinear"}
NEGATIVE_SLOPE = 0.01


def accept_fewer_channels(network: nn.Module, in_channels: int) -> None:
    """Let a network be given images with fewer channels than it has: the further ones are 0."""
    network.register_forward_pre_hook(partial(_filled_up, in_channels))


def with_channels(image: Tensor, in_channels: int) -> Tensor:
    """Images (B, C, *spatial) with as many channels as a network has; those that lack are 0."""
    missing = in_channels - image.shape[1]
    return torch.cat([image, image.new_zeros((len(image), missing, *image.shape[2:]))], dim=1) if missing else image


def _filled_up(in_channels: int, network: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    image, *others = given
    return with_channels(image, in_channels), *others


class InstanceNorm(nn.Module):
    """Normalise each channel of each sample over its voxels, with a learnt scale and shift.

    Input and result: (B, C, *spatial), any floating dtype; statistics in float32. A single voxel becomes the shift.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # Half-precision input beside float32 statistics and parameters: the CPU has it in group_norm (with one group
        # per channel), CUDA in instance_norm alone. Both are called below their Python fronts, which refuse a single
        # voxel.
        with torch.autocast(x.device.type, enabled=False):
            cudnn = torch.backends.cudnn.enabled
            if x.is_cuda:
                return torch.instance_norm(x, self.weight, self.bias, None, None, True, 0.0, self.eps, cudnn)
            return torch.group_norm(x, x.shape[1], self.weight, self.bias, self.eps, cudnn)


class ConvBlock(nn.Sequential):
    """Convolution (bias, same padding), instance normalisation, leaky ReLU.

    Maps (B, Cin, *s) to (B, Cout, *ceil(s / stride)). `dilation` is the distance of the kernel's taps per axis.
    """

    def __init__(
        self,
        dims: int,
        cin: int,
        cout: int,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        dilation: Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            same_convolution(dims, cin, cout, kernel_size, stride, dilation),
            InstanceNorm(cout),
            nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
        )


class ResidualBlock(nn.Module):
    """Two convolutions with normalisation beside a skip; what begins as the skip alone learns to add to it.

    The skip is averaged over the stride and, where the channels change, projected by a 1x1 convolution (no bias) and
    normalised. The last normalisation begins with scale 0. Maps (B, Cin, *s) to (B, Cout, *ceil(s / stride)).

    Source: nnU-Net's residual encoder (basic block "D" of He et al. 2018, "Bag of Tricks").
    """

    def __init__(
        self,
        dims: int,
        cin: int,
        cout: int,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        dilation: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        ones = (1,) * dims
        self.first = ConvBlock(dims, cin, cout, kernel_size, stride, dilation)
        self.second = same_convolution(dims, cout, cout, kernel_size, ones, dilation)
        self.norm = InstanceNorm(cout)
        nn.init.zeros_(self.norm.weight)
        self.skip = nn.Sequential()
        if tuple(stride) != ones:
            self.skip.append(AveragePool(stride))
        if cin != cout:
            self.skip.append(CONVOLUTIONS[dims](cin, cout, 1, bias=False))
            self.skip.append(InstanceNorm(cout))
        self.activation = nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.second(self.first(x))) + self.skip(x))


class AveragePool(nn.Module):
    """Mean over windows of `stride` voxels, those at the far border cut: (B, C, *s) to (B, C, *ceil(s / stride))."""

    def __init__(self, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        if len(self.stride) == 2:
            return self._pool(x, self.stride)
        # The CPU pools volumes in float32 alone, and its autocast would keep a copy for the backward pass: pool planes.
        planes = self._pool(x.flatten(1, 2), self.stride[1:]).unflatten(1, x.shape[1:3])
        return self._pool(planes.flatten(3), (self.stride[0], 1)).unflatten(3, planes.shape[3:])

    @staticmethod
    def _pool(x: Tensor, stride: tuple[int, ...]) -> Tensor:
        window = [min(edge, step) for edge, step in zip(x.shape[2:], stride, strict=True)]
        return x if max(stride) == 1 else F.avg_pool2d(x, window, stride, ceil_mode=True)


class Stage(nn.Sequential):
    """Blocks of one resolution, the unit of activation checkpointing and of dropout; maps (B, C, *s) to (B, C', *s').

    While `checkpointing` is on and gradients are wanted, only the stage's input is kept, and its blocks run a second
    time in the backward pass. Source: Chen et al. 2016, "Training deep nets with sublinear memory cost".

    While it trains, each of its feature maps is left out with probability `dropout`, in each sample for itself, and the
    others are scaled up to the same mean: voxels beside each other are too alike to be left out singly. Source: Tompson
    et al. 2015, "Efficient Object Localization Using Convolutional Networks".
    """

    checkpointing: bool = False
    dropout: float = 0.0

    def forward(self, x: Tensor, *beside: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            result = checkpoint(self.run, x, *beside, use_reentrant=False)
        else:
            result = self.run(x, *beside)
        if self.training and self.dropout > 0:  # outside of what runs twice: one draw serves both passes
            result = FEATURE_DROPOUTS[result.ndim - 2](result, self.dropout)
        return result

    def run(self, x: Tensor, *beside: Tensor) -> Tensor:
        """The blocks, one after the other; a stage whose blocks look at more than `x` has a `run` of its own."""
        return super().forward(x, *beside)


def follow_device(network: nn.Module, device: str) -> None:
    """Let a network that is traced on a CPU do what it would do on `device` (cuda or cpu)."""
    for module in network.modules():
        if isinstance(module, Convolution3d):
            module.by_slices = device == "cpu"


def set_checkpointing(network: nn.Module, on: bool) -> None:
    """Switch activation checkpointing of every `Stage` inside `network`."""
    for module in network.modules():
        if isinstance(module, Stage):
            module.checkpointing = on


def set_dropout(network: nn.Module, probability: float) -> None:
    """Let every `Stage` inside `network` leave out feature maps with this probability, [0, 1), while it trains.

    It draws from torch's generator of the device. In evaluation, and at 0, nothing is drawn and nothing changes.
    """
    for module in network.modules():
        if isinstance(module, Stage):
            module.dropout = probability


def same_convolution(
    dims: int,
    cin: int,
    cout: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int] | None = None,
) -> nn.Module:
    """A convolution with bias that maps every edge s to ceil(s / stride); kernel edges are odd."""
    taps = tuple(dilation or (1,) * dims)
    padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel_size, taps, strict=True))
    return CONVOLUTIONS[dims](cin, cout, tuple(kernel_size), tuple(stride), padding, taps)


def conv_stage(dims: int, cin: int, cout: int, kernel_size: Sequence[int], stride: Sequence[int], blocks: int) -> Stage:
    """`blocks` ConvBlocks in a row; the first carries the stride."""
    ones = (1,) * dims
    return Stage(
        *(
            ConvBlock(dims, cin if i == 0 else cout, cout, kernel_size, stride if i == 0 else ones)
            for i in range(blocks)
        )
    )


def residual_stage(
    dims: int,
    cin: int,
    cout: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    blocks: int,
    dilation: Sequence[int] | None = None,
) -> Stage:
    """`blocks` ResidualBlocks in a row; the first carries the stride, all the dilation."""
    ones = (1,) * dims
    return Stage(
        *(
            ResidualBlock(dims, cin if i == 0 else cout, cout, kernel_size, stride if i == 0 else ones, dilation)
            for i in range(blocks)
        )
    )


def fit_to(x: Tensor, like: Tensor) -> Tensor:
    """Cut the trailing voxels of an upsampled map (B, C, *s) to the spatial shape of `like`.

    An axis may be one voxel short; its last voxel is then repeated. A map that fits is returned as it is.

    Raises:
        ValueError: an axis is shorter than wanted by more than a voxel.
    """
    short = [wanted - edge for edge, wanted in zip(x.shape[2:], like.shape[2:], strict=True)]
    if max(short) > 1:
        raise ValueError(f"a map of shape {tuple(x.shape[2:])} is too small for {tuple(like.shape[2:])}")
    if max(short) == 1:
        x = F.pad(x, [n for axis in reversed(short) for n in (0, max(axis, 0))], mode="replicate")
    for axis, wanted in enumerate(like.shape[2:], start=2):
        if x.shape[axis] > wanted:
            x = x.narrow(axis, 0, wanted)
    return x


def resize_linearly(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Interpolate (B, C, *s) linearly to the spatial `shape`; both maps cover the same box. Keeps the dtype."""
    if tuple(x.shape[2:]) == tuple(shape):
        return x
    return F.interpolate(x, size=tuple(shape), mode=LINEAR_MODES[x.ndim - 2], align_corners=False)


def init_weights(module: nn.Module) -> None:
    """He initialisation for the leaky ReLU, biases zero (for `network.apply`)."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
