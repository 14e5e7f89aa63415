"""The parts networks are built from, for 2-D and 3-D alike.

A block never guesses its number of dimensions: `dims` picks the convolution from one table. Normalisation is computed
in float32 whatever autocast chooses for the convolutions, because the CPU's autocast would leave it in bfloat16 where
CUDA's would not; its result returns to the dtype of its input, so that memory traffic stays halved.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONVOLUTIONS: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED_CONVOLUTIONS: dict[int, type[nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NEGATIVE_SLOPE = 0.01


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
        # per channel), CUDA in instance_norm alone, whose Python front would refuse a single voxel.
        with torch.autocast(x.device.type, enabled=False):
            if x.is_cuda:
                cudnn = torch.backends.cudnn.enabled
                return torch.instance_norm(x, self.weight, self.bias, None, None, True, 0.0, self.eps, cudnn)
            return F.group_norm(x, x.shape[1], self.weight, self.bias, self.eps)


class ConvBlock(nn.Sequential):
    """Convolution (bias, same padding), instance normalisation, leaky ReLU.

    Maps (B, Cin, *s) to (B, Cout, *(s / stride)).
    """

    def __init__(self, dims: int, cin: int, cout: int, kernel_size: Sequence[int], stride: Sequence[int]) -> None:
        padding = tuple((k - 1) // 2 for k in kernel_size)
        super().__init__(
            CONVOLUTIONS[dims](cin, cout, tuple(kernel_size), tuple(stride), padding),
            InstanceNorm(cout),
            nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
        )


def conv_stage(
    dims: int, cin: int, cout: int, kernel_size: Sequence[int], stride: Sequence[int], blocks: int
) -> nn.Sequential:
    """`blocks` ConvBlocks in a row; the first carries the stride."""
    ones = (1,) * dims
    return nn.Sequential(
        *(
            ConvBlock(dims, cin if i == 0 else cout, cout, kernel_size, stride if i == 0 else ones)
            for i in range(blocks)
        )
    )


def init_weights(module: nn.Module) -> None:
    """He initialisation for the leaky ReLU, biases zero (for `network.apply`)."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
