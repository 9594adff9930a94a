"""AdamW as in transformers 4.27, which the published training uses."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


class AdamW:
    """Adam without weight decay; epsilon is not divided by the bias correction.

    torch.optim.AdamW divides it, and differs by 3e-3 in elements whose gradients are near 1e-8.
    """

    def __init__(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        self._parameters = dict(parameters)
        self._mean = {name: torch.zeros_like(tensor) for name, tensor in self._parameters.items()}
        self._square = {name: torch.zeros_like(tensor) for name, tensor in self._parameters.items()}
        self.steps = 0

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Apply the parameters' gradients, and clear them."""
        self.steps += 1
        rate *= (1 - _BETA2**self.steps) ** 0.5 / (1 - _BETA1**self.steps)
        for name, parameter in self._parameters.items():
            gradient, mean, square = parameter.grad, self._mean[name], self._square[name]
            assert gradient is not None
            mean.mul_(_BETA1).add_(gradient, alpha=1 - _BETA1)
            square.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
            parameter.addcdiv_(mean, square.sqrt().add_(_EPSILON), value=-rate)
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Return the moments by name, to be saved."""
        return {f"{kind}.{name}": tensor for kind, group in self._groups() for name, tensor in group.items()}

    def restore(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Continue after `steps` steps from what `state` returned then.

        Raises:
            KeyError: A moment is missing.
            RuntimeError: A moment has another shape.
        """
        for kind, group in self._groups():
            for name, tensor in group.items():
                tensor.copy_(state[f"{kind}.{name}"])
        self.steps = steps

    def _groups(self) -> tuple[tuple[str, dict[str, Tensor]], ...]:
        return ("exp_avg", self._mean), ("exp_avg_sq", self._square)
