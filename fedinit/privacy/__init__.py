"""Differential privacy that is counted: what a round costs, and how much noise a run needs (docs/privacy.md)."""
