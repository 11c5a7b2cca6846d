"""train/teacher.py that waits after its tenth step, on all ranks, until one of them is asked to stop.

A test that stops or kills a training in its middle needs neither thousands of steps nor luck then. That it was asked is a file in
the current directory, so that later starts there do not wait. After ten minutes it goes on unasked, and the test fails. All that
comes before and after is the product's own.
"""

import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from train import experiment, teacher
from train.run import stops
from train.run.exits import guard

ASKED = "asked"
SECONDS = 600


class Held(stops.Stops):
    """Stops whose tenth answer waits for a request."""

    calls = 0

    def agreed(self) -> str | None:
        self.calls += 1
        if self.calls == 10:
            patience = time.monotonic() + SECONDS
            while not Path(ASKED).exists() and not self._own() and time.monotonic() < patience:
                time.sleep(0.02)
            Path(ASKED).touch()
        return super().agreed()


if __name__ == "__main__":
    experiment.Stops = Held
    stops._FILE_SECONDS = 0.1  # some thousand steps of these small trainings pass in a second
    sys.exit(guard(teacher.main))
