"""Batches with prompts: a simulated person corrects half of the samples before the network learns from them.

A network with prompts serves two uses: segmenting automatically, and correcting a mask. So in every step, half of the
samples come without prompts. Each of the others begins with a mask

    AUTOMATIC  what the network itself makes of the image, without prompts
    DAMAGED    the target, with labels grown, shrunk, torn, exchanged or missing
    EMPTY      nothing, as when a person begins with a click

and goes through one to MOST_ROUNDS rounds: the person looks at the largest error and places a click, a scribble or a
box there (`imaging.prompts.next_prompt`); the network, as it is now, answers; the person looks at that. The network
then learns from the sample as it is after the last prompt. A network trained on clicks that were all placed at once
knows neither its own mistakes nor that clicks answer them (Mahadevan et al., BMVC 2018; Sofiiuk et al., ICIP 2022).

What is drawn follows from the seed, the fold, the process and the step alone, as everything in a training does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoseg.augmentation.presets import Augmentation
from autoseg.dataloading.previous_stage import corrupt
from autoseg.imaging.prompts import Kind, Prompt, channels_of, next_prompt, prompt_channels
from autoseg.nn.precision import autocast
from autoseg.planning.plan import Configuration, Plan
from autoseg.training.validation import decide

AUTOMATIC, DAMAGED, EMPTY = 0.5, 0.3, 0.2  # shares of the samples with prompts, by the mask they begin with
MOST_ROUNDS = 3
SCRIBBLES, BOXES = 0.15, 0.15  # shares of prompts; a box is a first prompt only
EXCHANGED = 0.5  # of the damaged masks: a label is called another one, or is missing
DAMAGE = Augmentation(  # of masks, more than the previous stage of a cascade is expected to do
    operation=0.9, operation_per_label=0.7, operation_radius=(1, 6), removal=0.3, removal_share=1.0
)  # fmt: skip
STREAM = 7  # of the seed: prompts draw apart from everything else

Segment = Callable[[Tensor], np.ndarray]  # images (B, C + prompt channels, *s) -> class indices (B, *s)


@dataclass(frozen=True)
class Prompting:
    """Puts prompts into the batches of one configuration."""

    plan: Plan
    configuration: Configuration

    def __call__(self, batch: dict[str, Any], segment: Segment, seed: tuple[int, ...]) -> dict[str, Any]:
        """A batch whose images have the channels of prompts.

        Args:
            batch: "image" (B, C, *patch) float32, "target" (B, *patch) class indices.
            segment: the network as it is.
            seed: of what is drawn, with the step as its last entry.
        """
        image: Tensor = batch["image"]
        rng = np.random.default_rng([*seed, STREAM])
        prompted = [i for i in range(len(image)) if (i + seed[-1]) % 2]
        channels = image.new_zeros((len(image), prompt_channels(self._num_labels), *image.shape[2:]))
        whole = torch.cat([image, channels], dim=1)
        targets = batch["target"].cpu().numpy()
        people = [_Person(self, targets[i], rng) for i in prompted]
        self._begin(people, whole[prompted], segment)
        for number in range(1, MOST_ROUNDS + 1):
            due = [n for n, person in enumerate(people) if person.rounds >= number]
            for n in due:
                people[n].speak(number)
                drawn = torch.from_numpy(people[n].channels())
                whole[prompted[n], image.shape[1] :] = drawn.to(image.device)
            waiting = [n for n in due if people[n].rounds > number]
            if waiting:
                answers = segment(whole[[prompted[n] for n in waiting]])
                for n, answer in zip(waiting, answers, strict=True):
                    people[n].mask = answer
        return batch | {"image": whole}

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm along each axis of a patch."""
        return self.configuration.spacing

    @property
    def radius_mm(self) -> float:
        """Of the balls that stand for clicks."""
        assert self.configuration.prompts is not None
        return self.configuration.prompts.radius_mm

    @property
    def _num_labels(self) -> int:
        return self.plan.labels.num_labels

    def _begin(self, people: "list[_Person]", images: Tensor, segment: Segment) -> None:
        """Give everybody a mask to begin with."""
        automatic = [n for n, person in enumerate(people) if person.begins_with == "automatic"]
        if automatic:
            for n, mask in zip(automatic, segment(images[automatic]), strict=True):
                people[n].mask = mask


class _Person:
    """Who corrects one sample."""

    def __init__(self, of: Prompting, target: np.ndarray, rng: np.random.Generator) -> None:
        self._of, self._rng = of, rng
        self._ignored = of.plan.labels.ignore_index
        self.target = target
        self.rounds = int(rng.integers(1, MOST_ROUNDS + 1))
        chance = rng.random()
        self.begins_with = "automatic" if chance < AUTOMATIC else "damaged" if chance < AUTOMATIC + DAMAGED else "empty"
        self.mask = np.zeros_like(target)
        if self.begins_with == "damaged":
            self.mask = self._damaged()
        self._prompts: list[Prompt] = []

    def speak(self, number: int) -> None:
        """Place the prompt of this round; where nothing is wrong, say nothing."""
        said = next_prompt(
            self.target, self.mask, self._of.spacing, ignored=self._ignored, kind=self._kind(number), rng=self._rng
        )
        if said is not None:
            self._prompts.append(said)

    def channels(self) -> np.ndarray:
        """What the network sees of it all."""
        return channels_of(
            self._prompts, self.mask, self._of.spacing, radius_mm=self._of.radius_mm,
            num_labels=self._of.plan.labels.num_labels,
        )  # fmt: skip

    def _kind(self, number: int) -> Kind:
        chance = self._rng.random()
        if chance < SCRIBBLES:
            return "scribble"
        return "box" if chance < SCRIBBLES + BOXES and number == 1 else "click"

    def _damaged(self) -> np.ndarray:
        """The target as a poor segmentation of it might be."""
        labels = self._of.plan.labels.num_labels
        mask = np.where(self.target == self._ignored, 0, self.target) if self._ignored is not None else self.target
        mask = corrupt(mask, labels, DAMAGE, self._rng)
        if self._rng.random() < EXCHANGED:
            mask[mask == self._rng.integers(1, labels + 1)] = self._rng.integers(0, labels + 1)
        return mask


def segment_with(network: nn.Module, plan: Plan, dtype: str) -> Segment:
    """The answers of a network that is being trained: class indices at full resolution, on the CPU, in the dtype of
    targets. What it draws (dropout) is left out."""
    labels = plan.heads

    @torch.no_grad()
    def segment(images: Tensor) -> np.ndarray:
        training = network.training
        network.eval()
        try:
            with autocast(images.device, dtype):
                logits = network(images)
        finally:
            network.train(training)
        finest = logits[0] if isinstance(logits, (list, tuple)) else logits
        return decide(finest.float(), labels).cpu().numpy().astype(np.int16)

    return segment
