"""Measuring the machine at hand, for the plans made on it."""

from autoseg.errors import UsageError
from autoseg.lines import LOG
from autoseg.nn.devices import choose_device


def calibrate_device(device: str = "auto") -> None:
    """Take a few real training steps, and keep what memory and time they took beside what was predicted.

    Raises:
        UsageError: there is no such device, or it is neither a CPU nor CUDA's.
    """
    from autoseg.nn.memory.calibration import TRIALS, calibrate, save_terms

    chosen = choose_device(device)
    if chosen.type not in TRIALS:
        raise UsageError(
            f"{chosen.type} devices cannot be calibrated: they do not report how much memory is in use",
            remedy=f"calibrate {' or '.join(TRIALS)}, or plan with the memory of this one: --vram GB",
        )
    path = save_terms(calibrate(chosen))
    if chosen.type == "cpu":
        from autoseg.nn.rate import calibrate_rate, save_rate

        rate = calibrate_rate()
        save_rate(rate)
        LOG.info(
            f"{rate.flops_2d / 1e9:.3g} G operations per second in 2-D, {rate.flops_3d / 1e9:.3g} in 3-D, {rate.dtype}"
        )
    LOG.info(f"saved to {path}; new plans use it")
