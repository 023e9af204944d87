"""The average of a run's last weights, often a little better than the last ones (arXiv:1803.05407).

When it is taken up, saved and put to use is the loop's business.

Lesson: lessons/25_your_ablation
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from nanochat.command import UserError


class TailAverage:
    """The mean of what parameters were after each update since the first `add`; it takes as much memory as they do."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter]):
        self.parameters = dict(parameters)
        self.means: dict[str, torch.Tensor] = {}
        self.count = 0

    @torch.no_grad()
    def add(self) -> None:
        """Count the weights as they are now."""
        self.count += 1
        for name, parameter in self.parameters.items():
            if self.count == 1:
                self.means[name] = parameter.detach().clone()
            else:
                self.means[name].lerp_(parameter, 1 / self.count)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters hold the mean; afterwards what they held before. Nothing where nothing was added."""
        held = {name: self.parameters[name].detach().clone() for name in self.means}
        self._put(self.means)
        try:
            yield
        finally:
            self._put(held)

    def settle(self) -> None:
        """Set the parameters to the mean, where anything was added, and forget it: for the end of a run."""
        self._put(self.means)
        self.means, self.count = {}, 0

    @torch.no_grad()
    def _put(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The means by parameter name, on the CPU, and how many went into them; empty where nothing was added."""
        if not self.count:
            return {}
        means = {f"{name}.average": mean.cpu().clone() for name, mean in self.means.items()}
        return {"averaged": torch.tensor(self.count), **means}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state_dict` gave, among other things. Raises UserError for a parameter that it lacks."""
        self.means, self.count = {}, int(state.get("averaged", 0))
        for name, parameter in self.parameters.items() if self.count else ():
            if f"{name}.average" not in state:
                raise UserError(f"the stored average lacks {name!r}: go on with the architecture that it was made with")
            self.means[name] = state[f"{name}.average"].to(parameter.device, copy=True)
