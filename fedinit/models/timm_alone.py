"""timm, imported without Weights & Biases: a second a process, for a line of timm's own training scripts.

timm takes wandb where it can be imported, and works without. A process that uses wandb itself imports it as ever.
"""

import sys

if "timm" not in sys.modules and "wandb" not in sys.modules:
    sys.modules["wandb"] = None  # pyright: ignore[reportArgumentType]  (as Python has a module that is not to be found)
    try:
        import timm  # noqa: F401
    finally:
        del sys.modules["wandb"]
