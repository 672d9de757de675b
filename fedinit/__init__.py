"""fedinit: federated fine-tuning of vision backbones with low-rank adapters.

This package is the core. It knows neither ``strategies`` (the server side) nor ``clients`` (the client
side); both are built on it. See docs/architecture.md.

What a notebook needs can be had from here, whichever module it lives in:

    run(*words)      a federated run on this machine, from the words of run_sim.py's command line
    load(folder)     a run's folder, as what `run` returns: its table, metrics, clients, summary, model
    aggregate(…)     a method's rule on one layer's plain tensors
    Run, InputError, RunFailed

Each is imported when it is asked for: ``import fedinit`` imports neither torch nor Flower. See docs/notebook.md.
"""

import importlib
import os
import time

from fedinit.rounding import keep_rows

BEGAN = time.time()  # what is written later to a file of this package, or of those built on it, was not imported

# flwr reads both when it is imported: a run on this machine asks nothing of the network.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
keep_rows()  # which is read with the first product of matrices

# Where the names of the face live: the one place where the core names modules that are built on it. They are resolved
# when somebody asks, never while this package is imported, so the imports still run one way.
FACE = {
    "InputError": "fedinit.errors",
    "Run": "fedinit.runs.result",
    "RunFailed": "fedinit.errors",
    "aggregate": "strategies.one_layer",
    "load": "fedinit.runs.result",
    "run": "run_sim",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version  # longer to import than all of this

        value: object = version("fedinit")
    elif name in FACE:
        value = getattr(importlib.import_module(FACE[name]), name)
    else:
        raise AttributeError(f"module 'fedinit' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return ["__version__", *FACE]
