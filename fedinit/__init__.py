"""fedinit: federated fine-tuning of vision backbones with low-rank adapters.

This package is the core. It knows neither ``strategies`` (the server side) nor ``clients`` (the client
side); both are built on it. See docs/architecture.md.
"""

__version__ = "0.1.0"
