"""The semantics of every product, in plain torch: each faster kernel is tested against these.

Notation: T tokens of the step, K columns (resident task vectors), `coef[t]` the weight of the
vector at hand for token t. All functions add into `y` in place and compute in float32.
"""

import torch
from torch import Tensor


def sparse_linear(y: Tensor, x: Tensor, coef: Tensor, delta: Tensor) -> None:
    """y[t] += coef[t] · delta @ x[t].

    y: [T, out]; x: [T, in]; coef: [T]; delta: [out, in], a CSR tensor.
    """
    product = x.float() @ delta.to_dense().float().T
    y += (coef.float()[:, None] * product).to(y.dtype)


def low_rank_linear(y: Tensor, x: Tensor, coef: Tensor, a: Tensor, b: Tensor) -> None:
    """y[t] += Σ_r coef[t, r] · (a[r] · x[t]) · b[r].

    y: [T, out]; x: [T, in]; coef: [T, R], the weight of the vector that owns rank r; a: [R, in];
    b: [R, out], the scale folded in.
    """
    hidden = (x.float() @ a.float().T) * coef.float()
    y += (hidden @ b.float()).to(y.dtype)


def sparse_rows(y: Tensor, ids: Tensor, coef: Tensor, delta: Tensor) -> None:
    """y[t] += coef[t] · delta[ids[t]].

    y: [T, dim]; ids: [T] int64; coef: [T]; delta: [vocabulary, dim], a CSR tensor.
    """
    y += (coef.float()[:, None] * delta.to_dense().float()[ids]).to(y.dtype)


def rms_norm(y: Tensor, x: Tensor, coef: Tensor, delta: Tensor, eps: float) -> None:
    """y[t] += coef[t] · x[t] / sqrt(mean(x[t]²) + eps) ⊙ delta.

    y, x: [..., dim]; coef: broadcastable to [..., 1]; delta: [dim]. Root mean square
    normalisation as in arXiv:1910.07467, eq. 4.
    """
    wide = x.float()
    normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    y += (coef.float() * normal * delta.float()).to(y.dtype)
