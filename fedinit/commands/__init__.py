"""The subcommands of `fedinit`, one a module: its parser, which imports nothing that takes long, and what it does."""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """module: that has `parser(name)` and `main(options, console)`. summary: what it does, in a few words."""

    module: str
    summary: str


COMMANDS: dict[str, Command] = {
    "run": Command("fedinit.commands.run", "federate on this machine; the same as python run_sim.py"),
    "watch": Command("fedinit.commands.watch", "a run of another process, live"),
    "report": Command("fedinit.report.commands", "report.html of a run, or of several in one page"),
    "compare": Command("fedinit.report.commands", "methods over seeds as a table, with what is beyond noise"),
    "predict": Command("fedinit.commands.predict", "classes of pictures, by the model of a run"),
    "evaluate": Command("fedinit.commands.evaluate", "how good a run's model is on data, with a confusion matrix"),
    "export": Command("fedinit.commands.export", "a run's model for PEFT, timm, ONNX or PyTorch, with a card"),
    "data": Command("fedinit.commands.data", "what images there are, and published sets out of their archives"),
    "deploy": Command("fedinit.commands.deploy", "federations of real Flower nodes"),
    "completion": Command("fedinit.commands.completion", "the lines that make bash, zsh or fish complete all this"),
}
