"""A clock that stands still until it is moved, in place of the `time` module: `from made_up_time import Time`."""


class Time:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now
