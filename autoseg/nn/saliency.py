"""Where a network looked, tile by tile: Grad-CAM of one head, and the attention that a network has.

Grad-CAM weights the feature maps of a layer by how a score grows with them, adds them up and keeps what is positive
(Selvaraju et al. 2017, arXiv 1610.02391). Of a segmentation, the score is the sum of one head's logits over some voxels
(Seg-Grad-CAM: Vinogradova et al. 2020, arXiv 2002.11434). There are two ways to weight:

    grad_cam    each map by the mean of its gradients, as published first. That mean is how the score grows when the
                whole map does, and an instance normalisation that follows takes such a growth away again, but for what
                it does at borders
    hires_cam   each voxel of a map by its own gradient (HiResCAM: Draelos and Carin 2020, arXiv 2011.08891; for
                segmentation Rheude et al. 2024, arXiv 2409.20287): what is kept is each place's share of the score, to
                first order

Which of them says more depends on the layer (`method_for`), measured by what hiding a part of the image does to the
score (docs/outputs.md).

Attention needs no gradient. An attention gate has a coefficient for each voxel of its skip. Of the transformer blocks
of a stage, the map is the attention rollout of the score's voxels (Abnar and Zuidema 2020, arXiv 2005.00928): from the
last block to the first, half of each token's weight stays where it is, as the residual connection has it, and half goes
to the tokens it looks at, by the mean over the heads.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoseg.errors import UsageError
from autoseg.nn.attention import TransformerBlock
from autoseg.nn.blocks import resize_linearly
from autoseg.nn.networks.attention_unet import AttentionGate
from autoseg.nn.precision import autocast

Method = Literal["grad_cam", "hires_cam"]
BOTTLENECK, DECODER = "bottleneck", "decoder"
HEADS = ("heads", "head", "scores", "embed")  # attributes that hold the layer, or layers finest first, that make logits
POOLS: dict[int, Callable[[Tensor, tuple[int, ...]], Tensor]] = {
    2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d,  # type: ignore[dict-item]
}  # fmt: skip


def stages_of(network: nn.Module) -> tuple[str, ...]:
    """Names of the layers that can be looked at: the bottleneck, what the head sees, and each encoder stage."""
    encoder = getattr(network, "encoder", None)
    numbers = tuple(str(n) for n in range(len(encoder))) if isinstance(encoder, nn.ModuleList) else ()
    deep = (BOTTLENECK,) if numbers or hasattr(network, "deepest") else ()
    return (*deep, *((DECODER,) if _head(network) is not None else ()), *numbers)


def method_for(stage: str) -> Method:
    """How a layer is weighted by default: the mean of gradients at the bottleneck, elsewhere each voxel's own."""
    return "grad_cam" if stage == BOTTLENECK else "hires_cam"


def attention_of(network: nn.Module) -> tuple[str, ...]:
    """Names of the attention maps that a network has: of its gates, finest first, and of its transformer stages."""
    return (*_gates(network), *_transformers(network))


class Saliency:
    """Maps of a tile: the gradient's first, then those of `attention_of`.

    Args:
        network: returns a list of logits, finest first.
        head: output channel whose logits are the score.
        stage: one of `stages_of(network)`.
        method: None: that of `method_for(stage)`.
        dtype: of the convolutions. float16 has no room for small gradients: float32 is used instead.

    Raises:
        UsageError: the network has no such stage.
    """

    def __init__(
        self,
        network: nn.Module,
        head: int,
        stage: str = BOTTLENECK,
        *,
        method: Method | None = None,
        dtype: str = "float32",
        device: torch.device | None = None,
    ) -> None:
        if stage not in (known := stages_of(network)):
            remedy = f"give one of {', '.join(known)}" if known else "use one of autoseg's networks"
            raise UsageError(f"{type(network).__name__} has no stage {stage!r} to explain it by", remedy=remedy)
        self.network, self.head, self.stage, self.method = network, head, stage, method or method_for(stage)
        self.dtype = "float32" if dtype == "float16" else dtype
        self.device = device or torch.device("cpu")
        self.names = ("saliency", *attention_of(network))

    def __call__(self, image: Tensor, score: Tensor) -> Tensor:
        """Explain tiles.

        Args:
            image: (B, C, *s) float32.
            score: (B, 1, *s) float32, weights of the head's logits in the score; 0 where they do not count.

        Returns:
            (B, maps, *s) float32, 0 or more. Where the score is 0 everywhere, so is all but the gates' coefficients.
        """
        with torch.inference_mode(False), torch.enable_grad():  # tensors of inference mode have no gradients
            return self._maps(image.clone(), score.clone())

    def _maps(self, image: Tensor, score: Tensor) -> Tensor:
        counts, size = bool(score.any()), image.shape[2:]
        if not counts and not _gates(self.network):
            return torch.zeros((len(image), len(self.names), *size), device=image.device)
        with (
            _without_gradients(self.network),
            _Heard(self.network, self.stage) as heard,
            autocast(self.device, self.dtype),
        ):
            total = (self.network(image)[0][:, self.head].float() * score[:, 0]).sum()
            found = [self._cam(total, heard.layer) if counts else torch.zeros_like(score)]
        for name in self.names[1:]:
            if name in heard.gates:
                found.append(heard.gates[name])
            else:
                found.append(_rollout(heard.blocks[name], score) if counts else torch.zeros_like(score))
        return torch.cat([resize_linearly(one.detach(), size) for one in found], dim=1)

    def _cam(self, score: Tensor, features: Tensor) -> Tensor:
        """The map (B, 1, *s) of a layer's features (B, C, *s), of which the score was computed."""
        (gradient,) = torch.autograd.grad(score, features, allow_unused=True)
        if gradient is None:
            return torch.zeros_like(features[:, :1], dtype=torch.float32)
        gradient = gradient.float()
        if self.method == "grad_cam":
            gradient = gradient.mean(dim=tuple(range(2, features.ndim)), keepdim=True)
        return (gradient * features.detach().float()).sum(dim=1, keepdim=True).relu_()


class _Heard:
    """What modules of a network computed in one forward pass, while it is entered.

    Attributes:
        layer: (B, C, *s), of which a gradient can be asked: where the graph begins.
        gates: name -> coefficients (B, 1, *s).
        blocks: name of a transformer stage -> of each block its attention and the tokens that it saw, the first first.
    """

    layer: Tensor

    def __init__(self, network: nn.Module, stage: str) -> None:
        self._network, self._stage, self._hooks = network, stage, ExitStack()
        self.gates: dict[str, Tensor] = {}
        self.blocks: dict[str, dict[nn.Module, Tensor]] = {}

    def __enter__(self) -> "_Heard":
        if self._stage == DECODER:
            head = _head(self._network)
            assert head is not None
            self._keep(head.register_forward_pre_hook(lambda module, given: (self._begin(given[0]), *given[1:])))
        else:
            layer = _layer(self._network, self._stage)
            self._keep(layer.register_forward_hook(lambda module, given, result: self._begin(result)))
        for name, gate in _gates(self._network).items():
            self._keep(gate.register_forward_hook(lambda module, given, result, name=name: self._gate(name, given)))
        for name, blocks in _transformers(self._network).items():
            self.blocks[name] = {}
            for block in blocks:
                self._keep(
                    block.attention.register_forward_hook(
                        lambda module, given, result, name=name: self._tokens(name, module, given)
                    )
                )
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def _keep(self, hook: Any) -> None:
        self._hooks.callback(hook.remove)

    def _begin(self, features: Tensor) -> Tensor:
        self.layer = features.detach().requires_grad_()
        return self.layer

    def _gate(self, name: str, given: Sequence[Tensor]) -> None:
        gate = _gates(self._network)[name]
        with torch.no_grad():
            self.gates[name] = gate.attention(*given).detach()

    def _tokens(self, name: str, module: nn.Module, given: Sequence[Tensor]) -> None:
        self.blocks[name][module] = given[0].detach()


def _rollout(blocks: dict[nn.Module, Tensor], score: Tensor) -> Tensor:
    """Where a stage's tokens gathered what they have, weighted by the score (B, 1, *s) of their voxels: (B, 1, *s')."""
    shape = next(iter(blocks.values())).shape[1:-1]
    weights = POOLS[len(shape)](score.float(), tuple(shape))[:, 0]
    with torch.no_grad():
        for attention, tokens in reversed(list(blocks.items())):
            weights = 0.5 * weights + 0.5 * attention.received(weights, tokens)  # type: ignore[operator]
    return weights[:, None]


def _layer(network: nn.Module, stage: str) -> nn.Module:
    """The module whose result is looked at."""
    if stage == BOTTLENECK and hasattr(network, "deepest"):
        return network.get_submodule(str(network.deepest))
    return network.encoder[-1 if stage == BOTTLENECK else int(stage)]  # type: ignore[index, return-value]


def _head(network: nn.Module) -> nn.Module | None:
    """The layer that makes the finest logits; None where it cannot be recognised."""
    for name in HEADS:
        found = getattr(network, name, None)
        if isinstance(found, nn.ModuleList) and len(found):
            return found[0]
        if isinstance(found, nn.Module):
            return found
    return None


def _gates(network: nn.Module) -> dict[str, AttentionGate]:
    gates = [module for module in network.modules() if isinstance(module, AttentionGate)]
    return {f"gate_{number}": gate for number, gate in enumerate(gates)}


def _transformers(network: nn.Module) -> dict[str, list[TransformerBlock]]:
    """Transformer blocks by the stage they are in; those whose attention can be followed back."""
    if getattr(network, "queries", None) is not None:  # tokens without a place: `MaskTransformer.explain` shows them
        return {}
    found: dict[str, list[TransformerBlock]] = {}
    for path, module in network.named_modules():
        if isinstance(module, TransformerBlock) and hasattr(module.attention, "received"):
            stage = path.rpartition(".")[0].replace(".", "_")
            found.setdefault(f"attention_{stage}", []).append(module)
    return found


@contextmanager
def _without_gradients(network: nn.Module) -> Iterator[None]:
    """Let no parameter of a network want a gradient: the graph then begins at the layer, and holds little else."""
    wanting = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in wanting:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_()
