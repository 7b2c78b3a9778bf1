"""Root-mean-square deviation from a reference geometry after optimal superposition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Doc

from uqbias.errors import UqbiasError
from uqbias.molecule.atoms import Atoms, ordered_atoms
from uqbias.molecule.topology import Topology
from uqbias.variables.base import SOFTENING, CollectiveVariable, take

#: Squarings of the key matrix. The second eigenvector is left with (λ₂/λ₁)^(2^20), 1e-12 for a gap of 3e-5.
SQUARINGS = 20
#: Squarings between two normalisations: a trace of 1 falls to no less than 4^-15 = 1e-9.
STRIDE = 4


def _key_matrix() -> Tensor:
    """[9, 16] which makes the 4 × 4 key matrix of Horn from the 3 × 3 matrix S = Σ x yᵀ; both flattened."""
    key = torch.zeros(3, 3, 4, 4, dtype=torch.float64)
    for axis in range(3):
        for row in range(4):
            key[axis, axis, row, row] = 1.0 if row in (0, axis + 1) else -1.0
        one, two = (axis + 1) % 3, (axis + 2) % 3
        for row, column in ((0, axis + 1), (axis + 1, 0)):
            key[one, two, row, column], key[two, one, row, column] = 1.0, -1.0
        for row, column in ((one + 1, two + 1), (two + 1, one + 1)):
            key[one, two, row, column] = key[two, one, row, column] = 1.0
    return key.reshape(9, 16)


class RMSD(CollectiveVariable):
    r"""Root-mean-square deviation after superposition on a reference, nm.

    .. math:: d = \sqrt{\min_R \frac1A \sum_{a} |R\,(x_a - \bar x) - (y_a - \bar y)|^2 + \varepsilon^2}

    with equal weights and ε = 1e-4 nm, which is the value at the reference itself and gives it a derivative. PLUMED's
    RMSD with TYPE=OPTIMAL.

    The rotation belongs to the largest eigenvalue of the key matrix of Horn, J. Opt. Soc. Am. A 4, 629 (1987), found in
    double precision by squaring the matrix 20 times: 2^20 power iterations in a fixed number of operations, which also
    hold where two eigenvalues coincide (a linear molecule). Since d is at a minimum over R, its gradient is that at
    fixed R, and nothing is differentiated through the eigenvector. Where two different rotations fit equally well, the
    gradient jumps, as it must.

    Parameters
    ----------
    atoms : indices of the A atoms that are superposed.
    reference : [A, 3] nm, their reference positions y.

    Examples
    --------
    >>> import torch
    >>> from uqbias.molecule.topology import Topology
    >>> from uqbias.registry import VARIABLES
    >>> water = Topology((8, 1, 1), ((0, 1), (0, 2)))
    >>> start = [[0.0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]]
    >>> away = VARIABLES.build({"kind": "rmsd", "atoms": "all", "reference": start}, topology=water)
    >>> moved = torch.tensor([[[0.0, 0, 0], [0, 0.1, 0], [0.1, 0, 0]], [[0.0, 0, 0], [0.2, 0, 0], [0, 0.2, 0]]])
    >>> [f"{value:.3f}" for value in away(moved)]
    ['0.000', '0.067']
    """

    kind = "rmsd"
    unit = "nm"
    hill_width = 0.02
    index: Tensor
    centred: Tensor
    key: Tensor

    def __init__(self, atoms: Sequence[int], reference: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.atoms = [int(i) for i in atoms]
        self.reference = [[float(value) for value in row] for row in reference]
        y = torch.tensor(self.reference, dtype=torch.float64)
        self.register_buffer("index", torch.tensor(self.atoms), persistent=False)
        self.register_buffer("centred", y - y.mean(0), persistent=False)
        self.register_buffer("key", _key_matrix(), persistent=False)

    @classmethod
    def build(
        cls,
        topology: Topology,
        *,
        atoms: Annotated[Atoms, Doc("all, heavy, or a list of indices and atom names")] = "heavy",
        reference: Annotated[
            Sequence[Sequence[float]] | None,
            Doc("positions of all atoms, nm; null: the start frame of lowest energy"),
        ] = None,
        start: NDArray[Any] | None = None,
    ) -> Self:
        """Make the variable of a molecule; without a reference it is ``start`` [N, 3], nm."""
        reference = start if reference is None else reference  # type: ignore[assignment]
        chosen = ordered_atoms(topology, atoms, "atoms of rmsd")
        if len(chosen) < 2:
            raise UqbiasError(f"rmsd of {len(chosen)} atom", "give two or more")
        if reference is None:
            raise UqbiasError("variable 'rmsd' without reference", "give the positions [N, 3] in nm")
        y = np.asarray(reference, dtype=float)
        if y.shape != (len(topology), 3) or not np.isfinite(y).all():
            raise UqbiasError(
                f"reference of rmsd of shape {y.shape}, finite: {bool(np.isfinite(y).all())}",
                f"give positions of all {len(topology)} atoms, [N, 3] in nm",
            )
        return cls(chosen, y[list(chosen)].tolist())

    def forward(self, positions: Tensor) -> Tensor:
        """RMSD [W], nm."""
        x = take(positions, self.index)
        x = x - x.mean(1, keepdim=True)
        y = self.centred.to(x.dtype)
        rotation = self._rotation(x.detach()).to(x.dtype)
        apart = (x.unsqueeze(-1) * rotation.unsqueeze(1)).sum(-2) - y
        return ((apart * apart).sum((1, 2)) / len(self.atoms) + SOFTENING**2).sqrt()

    def _rotation(self, x: Tensor) -> Tensor:
        """[W, 3, 3] matrices R with x R ≈ y for centred x [W, A, 3], float64."""
        x, y, key = x.double(), self.centred.double(), self.key.double()
        covariance = (x.unsqueeze(-1) * y.unsqueeze(-2)).sum(1)
        matrix = (covariance.reshape(-1, 9) @ key).reshape(-1, 4, 4)
        # No eigenvalue is below -(Σ|x|² + Σ|y|²)/2: shifted by that, the largest is also the largest in size.
        bound = 0.5 * ((x * x).sum((1, 2)) + (y * y).sum()) + SOFTENING**2
        one = torch.eye(4, dtype=x.dtype, device=x.device)
        power = matrix + bound.reshape(-1, 1, 1) * one
        for count in range(SQUARINGS):
            if count % STRIDE == 0:
                power = power / (power * one).sum((1, 2), keepdim=True)
            power = (power.unsqueeze(-1) * power.unsqueeze(-3)).sum(-2)
        # A projector now; its column of the largest diagonal element is an eigenvector, whatever the degeneracy.
        largest = (power * one).sum(-1).argmax(-1).reshape(-1, 1, 1).expand(-1, 4, 1)
        quaternion = power.gather(2, largest).squeeze(-1)
        quaternion = quaternion / (quaternion * quaternion).sum(-1, keepdim=True).sqrt()
        outer = quaternion.unsqueeze(-1) * quaternion.unsqueeze(-2)
        # qᵀ K q = Σ S ∘ R: the map that makes the key matrix from S, transposed, makes the rotation from q qᵀ.
        return (outer.reshape(-1, 16) @ key.T).reshape(-1, 3, 3)
