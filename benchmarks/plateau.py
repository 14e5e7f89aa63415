"""Where a plateau ends a training, and what was still to come: simulated curves, by patience.

    python benchmarks/plateau.py [--epochs 1000] [--noise 0.003] [--curves 40]

A curve is 0.85 - 0.4 exp(-epoch / 8) - 0.05 exp(-epoch / tau), a fast start and a slow gain of 0.05 Dice, with Gaussian
noise; the loss is its negative, with noise of its own. The table shows the median epoch at which
`autoseg.nn.optimization.Plateau` ends the training, and the Dice that the slow part was still to gain.
"""

import argparse

import numpy as np

from autoseg.nn.optimization import Plateau

PATIENCES, CONSTANTS, GAIN = (15, 30, 50, 80), (30, 100, 300), 0.05


def end_of(patience: int, tau: float, epochs: int, noise: float, rng: np.random.Generator) -> int:
    """The epoch after which one training ends."""
    plateau = Plateau(patience=patience)
    for epoch in range(epochs):
        dice = 0.85 - 0.4 * np.exp(-epoch / 8) - GAIN * np.exp(-epoch / tau)
        if plateau.update(rng.normal(-dice, noise), rng.normal(1 - dice, noise)):
            return epoch + 1
    return epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--noise", type=float, default=0.003)
    parser.add_argument("--curves", type=int, default=40)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    print(f"| patience | {' | '.join(f'tau {tau}' for tau in CONSTANTS)} |")
    print(f"|---|{'---|' * len(CONSTANTS)}")
    for patience in PATIENCES:
        cells = []
        for tau in CONSTANTS:
            ends = [end_of(patience, tau, options.epochs, options.noise, rng) for _ in range(options.curves)]
            epoch = int(np.median(ends))
            cells.append(f"{epoch} ({GAIN * np.exp(-epoch / tau):.4f})")
        print(f"| {patience} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
