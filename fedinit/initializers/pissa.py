"""PiSSA: the principal components of the weight as the adapter, the rest of it as the base.

Meng et al., NeurIPS 2024, arXiv 2404.02948, eq. 2–4. With W0 = U S Vᵀ, B = U_r √(S_r/s) and A = √(S_r/s) V_rᵀ, so s·BA
is the best approximation of rank r and the base keeps the singular values from the (r+1)-th on. The model stays as it
was. The paper's fast variant takes a randomised SVD; here the decomposition is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedinit.factors import Factors
from fedinit.initializers.from_weights import FromWeights, share
from fedinit.spectra import Spectrum, matrix_spectrum


@dataclass(frozen=True, kw_only=True)
class PiSSA(FromWeights):
    """The first r components of W0, shared evenly between B and A; the base gives them up."""

    @property
    def takes_out(self) -> bool:
        return True

    def split(self, weight: Tensor, rank: int, scale: float) -> Factors:
        spectrum = matrix_spectrum(weight)
        return share(self.part(spectrum, rank), scale, float(spectrum.S[0]))

    def part(self, spectrum: Spectrum, rank: int) -> Spectrum:
        """The r components of W0's spectrum that become the adapter."""
        return spectrum.cut(0, rank)
