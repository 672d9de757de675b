"""One ONNX file: images, as float32 that are normalised already, to logits; any number of images at a time.

What the model takes, its classes and where it comes from stand in the file's metadata, in the words of config.json.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedinit.errors import InputError, first_line
from fedinit.exports.contract import Format
from fedinit.exports.portable import Portable

FILE, INPUT, OUTPUT = "model.onnx", "images", "logits"


class OnnxFile(Format):
    """`--format onnx`: for programs without PyTorch."""

    name: ClassVar[str] = "onnx"
    library: ClassVar[str] = "onnx"
    reader: ClassVar[str] = "ONNX Runtime"
    writes_with: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript")
    reads_with: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    extra: ClassVar[str] = "onnx"

    def files(self, model: Portable) -> dict[str, bytes]:
        proto = _traced(model)
        for key, value in {**model.config(), **model.config()["pretrained_cfg"]}.items():
            if key != "pretrained_cfg":
                entry = proto.metadata_props.add()
                entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
        return {FILE: proto.SerializeToString()}

    def read(self, folder: Path, model: Portable) -> Tensor:
        import onnxruntime  # pyright: ignore[reportMissingImports]

        session = onnxruntime.InferenceSession(str(folder / FILE), providers=["CPUExecutionProvider"])
        (logits,) = session.run([OUTPUT], {INPUT: model.probes.numpy()})
        return torch.from_numpy(logits)

    def code(self, model: Portable) -> Sequence[str]:
        return [
            "import onnxruntime",
            "",
            f'session = onnxruntime.InferenceSession("{FILE}")',
            f'(logits,) = session.run(None, {{"{INPUT}": images}})  # a numpy array, float32',
        ]


def _traced(model: Portable) -> Any:
    """The module as an onnx.ModelProto. Raises InputError for one that torch cannot trace."""
    module = model.module
    module._forward_pre_hooks.clear()  # its branch on the type of the images is not of the graph
    batch = {INPUT: {0: torch.export.Dim("n", min=1)}}
    # The exporter logs and warns of what lies in torch and in the packages it uses.
    former = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Named(module).eval(),
                kwargs={INPUT: model.probes},
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=batch,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # whatever torch raises on what it cannot trace
        raise InputError(
            f"--format onnx: torch cannot write {model.architecture} as ONNX ({first_line(error)}); use --format timm "
            "or merged"
        ) from error
    finally:
        logging.disable(former)
    if program is None:
        raise InputError(f"--format onnx: torch made nothing of {model.architecture}; use --format timm or merged")
    return program.model_proto


class _Named(torch.nn.Module):
    """The model with one argument of the file's name for it."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images)
