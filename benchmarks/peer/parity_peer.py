"""nnU-Net's side of benchmarks/parity.py: one stage of it, with its own code, and what comes out as files.

    python parity_peer.py STAGE FOLDER KEY=VALUE ...

Run in an environment with nnunetv2==2.8.1, and with its three variables set. Nothing of nnU-Net is changed, but for
`labels` with float=1, which keeps its logits in float32, where its sliding window rounds them to float16.
"""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

CPU = torch.device("cpu")


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def preprocess(out: Path, plans: str, dataset: str, raw: str, configuration: str, cases: str) -> None:
    """Per case: image and segmentation as they would be stored, and the places of each label."""
    manager = PlansManager(plans)
    chosen = manager.get_configuration(configuration)
    description = read(Path(dataset))
    worker = chosen.preprocessor_class(verbose=False)
    for case in cases.split(","):
        images = sorted(str(path) for path in Path(raw, "imagesTr").glob(f"{case}_[0-9][0-9][0-9][0-9].*"))
        label = str(next(Path(raw, "labelsTr").glob(f"{case}.*")))
        data, seg, properties = worker.run_case(images, label, manager, chosen, description)
        places = {f"label_{key}": np.asarray(rows) for key, rows in properties["class_locations"].items()}
        np.savez(out / f"{case}.npz", data=data.astype(np.float32), seg=seg, **places)


def network(out: Path, plans: str, configuration: str, channels: str, heads: str) -> None:
    """A network with random weights, its input, and the logits of every stage."""
    chosen = PlansManager(plans).get_configuration(configuration)
    torch.manual_seed(5)
    built = build(chosen, int(channels), int(heads))
    with torch.no_grad():
        for name, parameter in built.named_parameters():  # norms begin as the identity, those of residual blocks at 0
            if "norm" in name or "all_modules.1" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    image = torch.randn(2, int(channels), *chosen.patch_size)
    with torch.inference_mode():
        logits = built(image)
    torch.save(built.state_dict(), out / "network.pt")
    np.savez(out / "network.npz", image=image.numpy(), **{f"stage_{i}": each.numpy() for i, each in enumerate(logits)})


def build(chosen, channels: int, heads: int):
    return get_network_from_plans(
        chosen.network_arch_class_name, chosen.network_arch_init_kwargs, chosen.network_arch_init_kwargs_req_import,
        channels, heads, allow_init=True, deep_supervision=True,
    )  # fmt: skip


def trainer_of(plans: str, configuration: str, description: dict, **changes) -> nnUNetTrainer:
    content = read(Path(plans)) | {"continue_training": False}
    content["configurations"][configuration] |= changes
    return nnUNetTrainer(content, configuration, 0, description, CPU)


def loss(out: Path, plans: str, dataset: str, configuration: str, labels: str, order: str, batch_dice: str) -> None:
    """Loss and gradients of given logits of every stage and a given segmentation; its targets of every stage."""
    description = read(Path(dataset)) | {"labels": json.loads(labels)}
    if order:
        description["regions_class_order"] = json.loads(order)
    trainer = trainer_of(plans, configuration, description, batch_dice=batch_dice == "1")
    given = np.load(out / "given.npz")
    logits = [torch.from_numpy(given[name]).requires_grad_() for name in sorted(n for n in given if n != "seg")]
    criterion = trainer._build_loss()
    value = criterion(logits, targets(trainer, given["seg"]))
    value.backward()
    gradients = [np.zeros_like(e.detach()) if e.grad is None else e.grad.numpy() for e in logits]
    np.savez(out / "loss.npz", loss=value.detach().numpy(), **{f"g{i}": g for i, g in enumerate(gradients)})


def targets(trainer: nnUNetTrainer, segmentation: np.ndarray) -> list[torch.Tensor]:
    """Deep supervision's targets of a batch (B, *patch) of label maps, through its own transforms."""
    manager = trainer.label_manager
    transforms = trainer.get_validation_transforms(
        trainer._get_deep_supervision_scales(), False, manager.foreground_labels,
        manager.foreground_regions if manager.has_regions else None, manager.ignore_label,
    )  # fmt: skip
    made = [
        transforms(image=torch.zeros(1, *one.shape), segmentation=torch.from_numpy(one[None].astype(np.int16)))
        for one in segmentation
    ]
    return [torch.stack(stage) for stage in zip(*(one["segmentation"] for one in made), strict=True)]


def steps(out: Path, plans: str, dataset: str, configuration: str, channels: str) -> None:
    """Weights before and after its own training step on the batches of a file; and the losses."""
    trainer = trainer_of(plans, configuration, read(Path(dataset)))
    torch.manual_seed(7)
    heads = trainer.label_manager.num_segmentation_heads
    trainer.network = build(trainer.configuration_manager, int(channels), heads)
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    trainer.loss = trainer._build_loss()
    torch.save(trainer.network.state_dict(), out / "before.pt")
    given = np.load(out / "batches.npz")
    losses = []
    for image, segmentation in zip(given["image"], given["seg"], strict=True):
        batch = {"data": torch.from_numpy(image), "target": targets(trainer, segmentation)}
        losses.append(float(trainer.train_step(batch)["loss"]))
    torch.save(trainer.network.state_dict(), out / "after.pt")
    np.savez(out / "steps.npz", losses=losses)


def rates(out: Path, plans: str, dataset: str, configuration: str) -> None:
    """The learning rate of each of its 1000 epochs."""
    trainer = trainer_of(plans, configuration, read(Path(dataset)))
    trainer.network = torch.nn.Linear(1, 1)
    optimizer, scheduler = trainer.configure_optimizers()
    found = []
    for epoch in range(trainer.num_epochs):
        scheduler.step(epoch)
        found.append(optimizer.param_groups[0]["lr"])
    np.savez(out / "rates.npz", rates=found)


def patches(out: Path, plans: str, dataset: str, configuration: str, number: str, augmented: str) -> None:
    """Patches as its training draws them, with or without its augmentation: images and targets."""
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    trainer = trainer_of(plans, configuration, read(Path(dataset)))
    chosen, manager = trainer.configuration_manager, trainer.label_manager
    rotation, dummy, initial, mirror = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    transforms = trainer.get_training_transforms(
        chosen.patch_size, rotation, None, mirror, dummy, use_mask_for_norm=chosen.use_mask_for_norm,
        foreground_labels=manager.foreground_labels, ignore_label=manager.ignore_label,
    )  # fmt: skip
    if augmented == "0":  # what its chain does where nothing is drawn: the centre of the larger patch
        transforms = partial(centre, size=chosen.patch_size)
    kind = infer_dataset_class(trainer.preprocessed_dataset_folder)
    loader = nnUNetDataLoader(
        kind(trainer.preprocessed_dataset_folder), chosen.batch_size, initial, chosen.patch_size, manager,
        oversample_foreground_percent=trainer.oversample_foreground_percent, transforms=transforms,
    )  # fmt: skip
    np.random.seed(11)  # noqa: NPY002 (the generator that its loader draws from)
    torch.manual_seed(11)
    images, segmentations = [], []
    while len(images) < int(number):
        batch = loader.generate_train_batch()
        images += [*batch["data"].numpy()]
        segmentations += [*batch["target"][:, 0].numpy()]
    shown = slice(int(number))
    np.savez(out / "patches.npz", image=np.stack(images[shown]), seg=np.maximum(np.stack(segmentations[shown]), 0))


def centre(image: torch.Tensor, segmentation: torch.Tensor, size) -> dict:
    cut = tuple(slice((n - s) // 2, (n - s) // 2 + s) for n, s in zip(image.shape[1:], size, strict=True))
    return {"image": image[(slice(None), *cut)], "segmentation": segmentation[(slice(None), *cut)]}


def labels(out: Path, model: str, images: str, folds: str, float: str) -> None:
    """Segmentations of a folder by a trained model; with float=1, its logits are kept in float32."""
    from nnunetv2.inference import predict_from_raw_data as module

    if float == "1":
        module.torch = type("Torch", (), {"__getattr__": lambda self, name: getattr(torch, DOUBLED.get(name, name))})()
        module.compute_gaussian = _uncached(partial(module.compute_gaussian, dtype=torch.float32), module)
    predictor = module.nnUNetPredictor(device=CPU, allow_tqdm=False, perform_everything_on_device=False)
    chosen = tuple(int(fold) if fold.isdecimal() else fold for fold in folds.split(","))
    predictor.initialize_from_trained_model_folder(model, chosen)
    predictor.predict_from_files_sequential(images, str(out), False, True)


DOUBLED = {"half": "float32"}


def _uncached(function, module):
    function.cache_clear = module.compute_gaussian.cache_clear  # its predictor clears the cache
    return function


STAGES = {f.__name__: f for f in (preprocess, network, loss, steps, rates, patches, labels)}

if __name__ == "__main__":
    stage, folder, *given = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    STAGES[stage](Path(folder), **dict(word.split("=", 1) for word in given))
