"""MiLoRA: the minor components of the weight as the adapter, so that what matters most to it stays frozen.

Wang et al., NAACL 2025, arXiv 2406.09044. PiSSA's split with the last r components of W0 = U S Vᵀ in place of the
first. The model stays as it was. Their singular values lie far below the largest, so the decomposition is in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedinit.initializers.pissa import PiSSA
from fedinit.spectra import Spectrum


@dataclass(frozen=True, kw_only=True)
class MiLoRA(PiSSA):
    """PiSSA with the last r components in place of the first."""

    def part(self, spectrum: Spectrum, rank: int) -> Spectrum:
        return spectrum.cut(len(spectrum.S) - rank, len(spectrum.S))
