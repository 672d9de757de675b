"""The aggregation bias of a round (`strategy.diagnostics`): how far plain averaging, and what a method made, are from
the ideal update ΔW = Σ p_i B_i A_i."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedinit.factors import Factors, inner, norm
from strategies.means import averaging_error, mean_factors

MEASURED = ("ideal2", "bias2", "correctable2", "merged2", "dot")  # of a layer; its figures may hold others


def measure_bias(
    products: Sequence[Factors], weights: Sequence[float], merged: Factors, frame: Factors
) -> dict[str, float]:
    """How far plain factor averaging is from the ideal update in one layer, and how far `merged` is.

    products: the clients', as methods work on them. weights: p_i, in the same order.
    merged: the layer's whole update, residual included.
    frame: what products are lifted by to updates of the layer (Factors.lift).

    Norms are squared, since they are summed over layers later:
    ideal2        ‖ΔW‖²
    bias2         ‖C‖², C = ΔW − B̄Ā
    correctable2  the part of ‖C‖² that a change of B can repair
    merged2       ‖merged‖²
    dot           ⟨ΔW, merged⟩
    Only ‖C‖² costs O(R²(d + k)), or O(R·d·k) where that is less; those with ΔW in them follow from ΔW = C + B̄Ā.
    """
    average = mean_factors(products, weights)
    missed = averaging_error(products, weights, average)
    plain, bias = frame.lift(average), frame.lift(missed)
    bias2 = norm(bias) ** 2
    return {
        "ideal2": max(bias2 + 2 * inner(bias, plain) + norm(plain) ** 2, 0.0),
        "bias2": bias2,
        "correctable2": frame.correctable2(average, missed),
        "merged2": norm(merged) ** 2,
        "dot": inner(bias, merged) + inner(plain, merged),
    }


def summarise(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """{bias, correctable, cosine, norm_ratio} (docs/methods.md) over all layers together, as if they were one
    block-diagonal matrix; empty where no layer was measured."""
    if not measured:
        return {}
    total = {key: sum(m[key] for m in measured) for key in MEASURED}
    ideal, merged = total["ideal2"] ** 0.5, total["merged2"] ** 0.5
    return {
        "bias": (total["bias2"] ** 0.5 / ideal) if ideal else 0.0,
        "correctable": total["correctable2"] / total["bias2"] if total["bias2"] else 0.0,
        "cosine": total["dot"] / (ideal * merged) if ideal and merged else 0.0,
        "norm_ratio": merged / ideal if ideal else 0.0,
    }
