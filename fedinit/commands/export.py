"""fedinit export: a run's model, for whoever uses it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from fedinit import standard_streams
from fedinit.commands.parsing import Parser, add_run, load_run
from fedinit.commands.places import own_place
from fedinit.exports import FORMATS
from fedinit.telling import tell

ABOUT = """The model that a run ended with, as a folder: its weights, config.json (input size, mean, std, class names,
the arguments it is made with) and README.md, a model card with the lines of Python that use it.

  peft     the adapter with the classifier, and the frozen weights where they are not timm's own
  merged   the weights with the adapter folded in, for PyTorch
  timm     the same, as timm.create_model("local-dir:FOLDER", pretrained=True) reads it
  onnx     one file for ONNX Runtime and others; needs pip install "fedinit[onnx]"

What is written is read back by the program it is for, where that is installed, and gives the run's logits to 1e-5; else
nothing is left. Of a method whose clients keep factors of their own (fedsa_lora) each client's model is written."""
EPILOG = """examples:
  fedinit export outputs/digits/…-s0 --format timm
  fedinit export outputs/digits/…-s0 --format onnx --output model"""


def parser(name: str) -> Parser:
    """Of the command's words."""
    made = Parser(f"fedinit {name}", ABOUT, EPILOG)
    add_run(made)
    made.add_argument("--format", required=True, choices=sorted(FORMATS), help="the program that is to read it")
    made.add_argument(
        "--output", type=own_place, metavar="FOLDER", help="to be made; default: export/FORMAT in the run's"
    )
    return made


def main(name: str, words: Sequence[str], console: Console) -> int:
    """Write it; the exit code. Raises InputError, one line."""
    options = parser(name).parse_args(words)
    standard_streams.prints_beside()
    run = load_run(options)
    from fedinit.exports.writing import export, reader

    for made in export(run, options.format, options.output, options.client):
        if made.difference is None:
            tried = f"not read back: {' and '.join(made.untried)} not installed"
        else:
            tried = f"{reader(options.format)} gives the run's logits, to {made.difference:.0e}"
        text = f"{made.folder}: {', '.join(made.files)}; {made.size / 1e6:.1f} MB; {tried}"
        tell(console, text)
    return 0
