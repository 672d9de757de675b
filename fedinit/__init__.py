"""fedinit: federated fine-tuning of vision backbones with low-rank adapters.

This package is the core. It knows neither ``strategies`` (the server side) nor ``clients`` (the client
side); both are built on it. See docs/architecture.md.
"""

import os

# flwr reads both when it is imported: a run on this machine asks nothing of the network.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

__version__ = "0.1.0"
