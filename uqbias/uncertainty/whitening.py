"""Centring, scaling and principal components of features, in a fixed number of dimensions."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.options import Count
from uqbias.uncertainty.base import set_buffers

Whiten = Literal["none", "standard", "pca"]
#: The option ``dims`` of every kind that whitens.
Components = Annotated[Count | None, Doc("principal components kept; null: all")]
#: Directions whose variance is below this share of the largest are left out: in float32 they would be rounding noise.
RELATIVE_VARIANCE = 1e-6
#: Standard deviations; beyond this z is bent smoothly to a bound, so that z² stays finite in float32.
BOUND = 1e4


class Whitening(nn.Module):
    """Linear map z = (x − mean) · matrix, bent to |z| < 1e4.

    Parameters
    ----------
    dim : features, D.
    kind : ``none`` (centring only), ``standard`` (unit variance per feature), ``pca`` (principal components with unit
        variance).
    n_dims : principal components kept; components that the data do not have are zero. D if None; only for ``pca``.

    Attributes
    ----------
    mean : [D].
    matrix : [D, d].
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, dim: int, kind: Whiten, n_dims: int | None) -> None:
        super().__init__()
        if n_dims is not None and kind != "pca":
            raise UqbiasError(f"dims: {n_dims} with whitening '{kind}'", "set whitening: pca")
        self.kind = kind
        self.dim = dim if n_dims is None else n_dims
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("matrix", torch.zeros(dim, self.dim))

    def fit(self, samples: NDArray[np.float64]) -> None:
        """Set mean and matrix.

        Parameters
        ----------
        samples : [n, D].

        Raises
        ------
        UqbiasError
            If no feature varies.
        """
        mean = samples.mean(axis=0)
        centred = samples - mean
        variance = (centred**2).mean(axis=0)
        check_varies(samples, "features")
        dim, kept = self.matrix.shape
        matrix = np.zeros((dim, kept))
        if self.kind == "pca":
            values, vectors = np.linalg.eigh(centred.T @ centred / len(samples))
            order = np.argsort(values)[::-1][:kept]
            order = order[values[order] > RELATIVE_VARIANCE * values.max()]
            matrix[:, : len(order)] = vectors[:, order] / np.sqrt(values[order])
        else:
            varying = variance > RELATIVE_VARIANCE * variance.max()
            scale = np.ones(dim) if self.kind == "none" else 1.0 / np.sqrt(np.where(varying, variance, 1.0))
            matrix[:] = np.diag(np.where(varying, scale, 0.0))
        set_buffers(self, mean=mean, matrix=matrix)

    def transform(self, samples: NDArray[np.float64]) -> NDArray[np.float64]:
        """``forward`` in float64, whatever the dtype of the buffers."""
        return bend((samples - self.mean.double().cpu().numpy()) @ self.matrix.double().cpu().numpy())

    def forward(self, features: Tensor) -> Tensor:
        """Whiten [..., D] to [..., d]."""
        return bend_tensor((features - self.mean) @ self.matrix)


def check_varies(samples: NDArray[np.float64], what: str) -> None:
    """Refuse samples [n, D] none of whose features varies."""
    # Relative to the size of the features: a constant feature keeps the variance of its rounding.
    if not samples.var(axis=0).max() > 1e-12 * max(1e-12, float((samples**2).mean())):
        raise UqbiasError(
            f"the {what} have no variance over {len(samples)} samples", "give frames that differ in these features"
        )


def bend(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bend z smoothly to ±`BOUND`."""
    bent: NDArray[np.float64] = z / np.sqrt(1.0 + (z / BOUND) ** 2)
    return bent


def bend_tensor(z: Tensor) -> Tensor:
    """`bend` of a tensor."""
    return z * (1.0 + (z / BOUND) ** 2).rsqrt()
