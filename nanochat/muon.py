"""Muon's arithmetic on stacks of equal matrices: orthogonalisation, and the options that surround it.

Which parameters are matrices, their momentum, and how ranks share the work: `optim`.

Shapes: N matrices of R rows and C columns.

Lesson: lessons/15_muon
"""

from dataclasses import dataclass
from typing import Literal

import torch

NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5
"""The quintic of the Muon post, https://kellerjordan.github.io/posts/muon/: fast from zero, loose around one."""

POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
"""Polar Express (arXiv:2505.16932), singular values from 1e-3: each quintic is the best one for what the last left."""

POLAR_EXPRESS_SAFETY = 1.01
"""Every quintic but the last is made for values up to this, so that rounding above 1 does not run away (ibid.)."""


@dataclass(frozen=True)
class MuonOptions:
    """How Muon makes an update from a momentum."""

    method: Literal["newton_schulz", "polar_express"] = "newton_schulz"
    """How a matrix is made orthogonal."""
    variance_beta2: float | None = 0.95
    """Decay of the running mean of squares by which rows (of wide matrices: columns) are evened out; None: not."""
    cautious: bool = False
    """Decay a weight only where its update does not let it grow (arXiv:2510.12402)."""


def orthogonalize(
    matrices: torch.Tensor, dtype: torch.dtype, method: Literal["newton_schulz", "polar_express"] = "newton_schulz"
) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrices, roughly: singular values move into about [0.7, 1.2].

    matrices (N, R, C), any N; the products are made in `dtype`, the result has the format of `matrices`.
    """
    tall = matrices.size(-2) > matrices.size(-1)
    polar = method == "polar_express"
    largest = torch.linalg.matrix_norm(matrices, keepdim=True) * (POLAR_EXPRESS_SAFETY if polar else 1.0)
    x = (matrices / (largest + 1e-7)).to(dtype)
    quintics = POLAR_EXPRESS if polar else NEWTON_SCHULZ
    for number, (a, b, c) in enumerate(quintics, start=1):
        if polar and number < len(quintics):
            a, b, c = a / POLAR_EXPRESS_SAFETY, b / POLAR_EXPRESS_SAFETY**3, c / POLAR_EXPRESS_SAFETY**5
        gram = x.mT @ x if tall else x @ x.mT  # (N, shorter, shorter)
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, x, factor, beta=a) if tall else torch.baddbmm(x, factor, x, beta=a)
    return x.to(matrices.dtype)


def variance_shape(rows: int, columns: int) -> tuple[int, int]:
    """Of one matrix's running mean of squares: a value per row, or per column where columns are more."""
    return (rows, 1) if rows >= columns else (1, columns)


def even_out_(updates: torch.Tensor, squares: torch.Tensor, beta2: float) -> torch.Tensor:
    """Divide rows or columns of updates (N, R, C) by the root of their running mean of squares; norms stay.

    `squares` (N, R, 1) or (N, 1, C) is carried on. NorMuon (arXiv:2510.05491), along the longer side: the vectors of
    the shorter side of an orthogonal matrix all have length one already. The norm is kept, so the running mean needs
    no correction for its start at zero.
    """
    axis = -1 if squares.size(-1) == 1 else -2
    lengths = torch.linalg.vector_norm(updates, dim=axis, keepdim=True)  # of the vectors: as `squares`
    squares.lerp_(lengths.square() / updates.size(axis), 1 - beta2)
    factors = squares.sqrt().add_(1e-10).reciprocal_()
    before, after = (torch.linalg.matrix_norm(x, keepdim=True) for x in (lengths, lengths * factors))
    return updates.mul_(factors.mul_(before / after.add_(1e-10)))


def decay_(weights: torch.Tensor, updates: torch.Tensor, factor: float, cautious: bool) -> None:
    """Shrink weights by `factor` of themselves; `cautious`: only those that subtracting `updates` does not let grow."""
    if factor == 0:
        return
    if cautious:
        weights.addcmul_(weights, (weights * updates >= 0).to(weights.dtype), value=-factor)
    else:
        weights.mul_(1 - factor)
