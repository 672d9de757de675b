"""timm, imported without what it has no need of here, which takes longer than timm itself.

Weights & Biases: timm takes it where it can be imported, for a line of its own training scripts, and works without. A
process that uses wandb itself imports it as ever.
torch's compiler: timm keeps four functions of one family of models (NaFlex) from it, where torch can do that, and
works without. torchvision, which timm imports, asks it for one function, and calls that where a detector compiles an
operator; it is looked up at that call then.
"""

import importlib
import sys
from types import ModuleType
from unittest.mock import patch

import torch

COMPILER = "torch._dynamo"


def is_compile_supported(device_type: str) -> bool:
    """The compiler's own answer."""
    return importlib.import_module(f"{COMPILER}.utils").is_compile_supported(device_type)


def without() -> dict[str, ModuleType | None]:
    """{module: what stands in for it while timm is imported}. None: as Python has a module that is not to be found."""
    asked = ModuleType(f"{COMPILER}.utils")
    asked.is_compile_supported = is_compile_supported  # pyright: ignore[reportAttributeAccessIssue]
    made: dict[str, ModuleType | None] = {"wandb": None}
    if COMPILER not in sys.modules:
        made[asked.__name__] = asked
    return {name: module for name, module in made.items() if name not in sys.modules}


if "timm" not in sys.modules:
    stand_ins = without()
    with patch.object(torch.compiler, "disable", None):
        sys.modules.update(stand_ins)  # pyright: ignore[reportCallIssue, reportArgumentType]
        try:
            import timm  # noqa: F401
        finally:
            for name in stand_ins:
                del sys.modules[name]
