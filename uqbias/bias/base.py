"""The contract of a bias, and the sum of several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uqbias.errors import UqbiasError

Array = NDArray[np.float64]


class Bias(ABC):
    """A bias potential V(u, E) on the uncertainty u (the driver) and the energy E of W walkers.

    ``energy`` is part of the compiled graph and takes everything that changes during a run from ``state``, whose
    tensors are graph inputs. ``update`` runs on the host between steps and changes these tensors in place.

    Attributes
    ----------
    kind : name in the registry.
    frozen : if True, ``update`` does nothing: the bias is a fixed potential and the energy is conserved.
    pace : number of steps between updates, or None for a bias that never changes.
    """

    kind: ClassVar[str]
    frozen: bool = False
    pace: int | None = None

    def __init__(self) -> None:
        self._state: dict[str, Tensor] = {}
        self._dtype = torch.float32
        self._device = torch.device("cpu")

    def state(self) -> dict[str, Tensor]:
        """Tensors that ``energy`` needs; always the same dict, whose entries may be re-bound by ``update``."""
        return self._state

    @abstractmethod
    def energy(self, u: Tensor, E: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """Bias potential, differentiable in ``u`` and ``E``; reads nothing that changes except ``state``.

        Parameters
        ----------
        u : [W] driver.
        E : [W] kJ/mol.
        state : tensors as of `state`.

        Returns
        -------
        [W] kJ/mol.
        """

    def update(self, step: int, u: NDArray[Any], E: NDArray[Any]) -> None:  # noqa: B027
        """Take note of the walkers at ``step``; the base class does nothing.

        Parameters
        ----------
        step : number of the MD step that ``u`` and ``E`` were observed at.
        u : [W] driver; NaN for a walker that is to be left out.
        E : [W] kJ/mol.
        """

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Bias:
        """Move the state tensors; returns the bias itself."""
        self._dtype, self._device = dtype, torch.device(device)
        for name, tensor in self._state.items():
            self._state[name] = tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        return self

    def checkpoint(self) -> dict[str, NDArray[Any]]:
        """All that a later `restore` needs to continue exactly; arrays, fit for ``numpy.savez``."""
        return {}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Continue from a `checkpoint`.

        Raises
        ------
        UqbiasError
            If the arrays are those of another kind of bias.
        """
        if arrays:
            raise UqbiasError(f"checkpoint of another bias, with {sorted(arrays)}", f"'{self.kind}' keeps no arrays")

    def reset(self) -> None:  # noqa: B027
        """Forget the history; the base class has none."""


class BiasSum(Bias):
    """Sum of biases; the state keys of bias ``i`` carry the prefix ``"i."``.

    Parameters
    ----------
    biases : the terms; may be empty, V is then zero.
    """

    kind = "sum"

    def __init__(self, biases: Sequence[Bias] = ()) -> None:
        super().__init__()
        self.biases = list(biases)
        self._names: list[list[str]] = [list(bias.state()) for bias in self.biases]
        self._collect()

    @property
    def pace(self) -> int | None:  # type: ignore[override]
        """Greatest common divisor of the paces of the terms that are not frozen."""
        paces = [bias.pace for bias in self.biases if bias.pace and not bias.frozen]
        return int(np.gcd.reduce(paces)) if paces else None

    def state(self) -> dict[str, Tensor]:
        self._collect()
        return self._state

    def _collect(self) -> None:
        for index, (bias, names) in enumerate(zip(self.biases, self._names, strict=True)):
            state = bias.state()
            for name in names:
                self._state[f"{index}.{name}"] = state[name]

    def energy(self, u: Tensor, E: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        total = torch.zeros_like(u)
        for index, (bias, names) in enumerate(zip(self.biases, self._names, strict=True)):
            total = total + bias.energy(u, E, {name: state[f"{index}.{name}"] for name in names})
        return total

    def update(self, step: int, u: NDArray[Any], E: NDArray[Any]) -> None:
        if self.frozen:
            return
        for bias in self.biases:
            bias.update(step, u, E)

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> BiasSum:
        for bias in self.biases:
            bias.to(dtype, device)
        self._collect()
        return self

    def checkpoint(self) -> dict[str, NDArray[Any]]:
        return {
            f"{index}.{name}": array
            for index, bias in enumerate(self.biases)
            for name, array in bias.checkpoint().items()
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        for index, bias in enumerate(self.biases):
            prefix = f"{index}."
            bias.restore({name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)})
        self._collect()

    def reset(self) -> None:
        for bias in self.biases:
            bias.reset()
        self._collect()
