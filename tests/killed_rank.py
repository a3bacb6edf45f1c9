"""`wrangan` in which rank 1 is killed in the middle of its tenth step, the first time torchrun starts it."""

import os
import signal
from typing import Any

from wrangan_cli.app import main
from wrangan_cli.engine.training.adversarial import AdversarialTrainer

whole = AdversarialTrainer.generator_losses


def killed(self: AdversarialTrainer) -> Any:
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if self.steps == 9 and os.environ["RANK"] == "1" and first:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self)


if __name__ == "__main__":
    AdversarialTrainer.generator_losses = killed  # type: ignore[method-assign]
    main()
