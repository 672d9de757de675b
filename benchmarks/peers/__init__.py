"""The same federated work in fedinit and in what a person would use instead (benchmarks/peers/__main__.py)."""
