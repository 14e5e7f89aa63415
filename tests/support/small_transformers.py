"""Small transformer networks, and what they are compared with: attention written out, parameters counted."""

import math

import numpy as np
import torch

from small_networks import laid_out


def build(network, dims=2, features=(8, 16, 24), out_channels=2, **changes):
    """Two blocks per stage; isotropic halving and 3-wide kernels unless said otherwise."""
    return network(**laid_out(features, dims, out_channels=out_channels, **changes))


def enlarge(module, factor=10.0):
    """Linear weights and position biases as far from 0 as training makes them: attention that prefers something."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(factor)
            elif name.endswith("bias"):
                parameter.normal_(std=0.5)
    return module


def written_out(attention, tokens, context, bias):
    """softmax(Q K^T / sqrt(d) + bias) V of each sample and head alone, in float64, without a library's attention."""

    def linear(layer, x):
        y = x @ layer.weight.detach().double().numpy().T
        return y if layer.bias is None else y + layer.bias.detach().double().numpy()

    result = np.zeros(tokens.shape)
    for b, (own, other) in enumerate(zip(tokens.double().numpy(), context.double().numpy(), strict=True)):
        query, key, value = (
            linear(layer, x).reshape(len(x), attention.heads, -1)
            for layer, x in ((attention.query, own), (attention.key, other), (attention.value, other))
        )
        seen = np.zeros_like(query)
        for h in range(attention.heads):
            scores = query[:, h] @ key[:, h].T / math.sqrt(query.shape[-1]) + bias[b % len(bias), h]
            weights = np.exp(scores - scores.max(1, keepdims=True))
            seen[:, h] = weights / weights.sum(1, keepdims=True) @ value[:, h]
        result[b] = linear(attention.project, seen.reshape(len(own), -1))
    return result


def parameters_of(network):
    return sum(p.numel() for p in network.parameters())


def parameters_of_block(channels, ratio=4):
    """Attention (four linear layers, one without bias), feed-forward, two norms."""
    attention = 4 * channels**2 + 3 * channels
    feed_forward = 2 * ratio * channels**2 + (ratio + 1) * channels
    return attention + feed_forward + 4 * channels
