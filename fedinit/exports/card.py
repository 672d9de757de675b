"""README.md of an exported model: what it is, how it is used, what it scores, how it was trained.

In the form of the Hugging Face hub's model cards; names that came with the data are escaped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import yaml

import fedinit
from fedinit.data.deep_grey import TOP
from fedinit.data.reporter import counted
from fedinit.exports.contract import Format
from fedinit.exports.portable import Portable
from fedinit.runs.export import UNTRAINED
from fedinit.runs.made_of import KINDS
from fedinit.runs.summary import OF_THE_SEED
from fedinit.runs.table import privacy_said
from fedinit.said import printable
from fedinit.scores import SCORES, judged_on, without

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~])")
FEW = 30  # class names that a card lists; more stand in config.json alone


def card(model: Portable, written: Format) -> str:
    """The whole text."""
    run, config = model.run, model.run.config
    whose = "" if model.client is None else f", client {model.client}"
    title = f"{config.strategy.name} on {config.data.name}: {config.model.title}{whose}"
    parts = [_front_matter(model, written), f"# {_plain(title)}", _what(model)]
    parts += ["## Use", _use(model, written), "## Input", _input(model)]
    if scores := model.scores():
        head_alone = run.summary.get("head_alone")
        parts += ["## What it scores", _scores(model, scores, head_alone)]
    parts += ["## How it was trained", _training(model), "## Limits", _limits(model)]
    return "\n\n".join(parts) + "\n"


def _front_matter(model: Portable, written: Format) -> str:
    tags = ["federated-learning", "lora", "fedinit", model.run.config.strategy.name]
    values: dict[str, Any] = {"library_name": written.library, "tags": tags}
    if not _is_regression(model):
        values = {**values, "pipeline_tag": "image-classification"}
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"


def _what(model: Portable) -> str:
    names = model.run.class_names
    config, clients = model.run.config, model.run.summary["clients"]
    what = "A regression" if _is_regression(model) else f"An image classifier of {counted(len(names), 'class')}"
    text = (
        f"{what}: {_plain(config.model.title)}, fine-tuned by {counted(clients, 'client')} that shared no images, "
        f"each with a low-rank adapter (`adapter={config.adapter.kind}`, rank {config.adapter.rank}), by "
        f"fedinit {fedinit.__version__}, `strategy={config.strategy.name}`."
    )
    if model.client is not None:
        shared = model.adapter.name == PurePath(UNTRAINED).name
        of = "all clients of whom no update counted" if shared else f"client {model.client}"
        text += f" Clients keep part of their adapters to themselves; this is the model of {of}."
    if not _is_regression(model):
        listed = ", ".join(map(_plain, names[:FEW])) + (", …" if len(names) > FEW else "")
        text += f"\n\nClasses, in the order of the logits: {listed}. `config.json` has them as `label_names`."
    return text


def _use(model: Portable, written: Format) -> str:
    return "\n".join(["```python", *_reading(model, written), *written.code(model), "```"])


def _reading(model: Portable, written: Format) -> Sequence[str]:
    spec = model.backbone.input
    if _is_regression(model):
        return []
    mode = "L" if spec.channels == 1 else "RGB"
    shape = f"{spec.height}, {spec.width}, {spec.channels}"
    lines = [
        "import numpy as np",
        *([] if written.name == "onnx" else ["import torch"]),
        "from PIL import Image, ImageOps",
    ]
    lines += [
        "",
        'picture = Image.open(open("picture.jpg", "rb"))  # by its name Pillow scrambles a TIFF that is turned',
        *_stored(model),
        f"picture.draft(None, {(2 * max(spec.height, spec.width),) * 2})  # of a large JPEG no more than that",
        "try:",
        "    picture = ImageOps.exif_transpose(picture)  # upright",
        "except Exception:",
        "    pass  # EXIF that cannot be read",
        *_deep(model),
        'picture = picture.convert("RGBA")',
        'paper = Image.new("RGBA", picture.size, "white")  # what is transparent shows it',
        f'picture = Image.alpha_composite(paper, picture).convert("{mode}")',
        f"picture = ImageOps.fit(picture, ({spec.width}, {spec.height}), Image.Resampling.BICUBIC)",
        f"pixels = np.asarray(picture, np.float32).reshape({shape}) / 255",
        f"pixels = (pixels - np.float32({list(spec.mean)})) / np.float32({list(spec.std)})",
        "images = pixels.transpose(2, 0, 1)[None]",
    ]
    if written.name != "onnx":
        lines[-1] = "images = torch.from_numpy(pixels.transpose(2, 0, 1))[None].contiguous()"
    return [*lines, ""]


def _stored(model: Portable) -> Sequence[str]:
    """Lines that say how a picture's file has its grey, before Pillow loads it, and refuse grey of more than 8 bits
    that the run sees otherwise than Pillow does, as `fedinit.data.deep_grey` has it; all, where it kept no levels."""
    lines = [
        'how, _, _, stored = (*picture.tile, ("",) * 4)[0]  # how the file has its pixels',
        'odd = stored == "LA;16B" or (picture.format, picture.mode) == ("JPEG2000", "LA")',
    ]
    if not _windows(model):
        why = "grey of more than 8 bits: this run kept no levels to show it between"
        return [*lines, 'if odd or picture.mode[0] in "IF":', f'    raise ValueError("{why}")']
    return [
        *lines,
        'if picture.mode[0] in "IF":  # grey of more than 8 bits',
        '    tags = getattr(picture, "tag_v2", {})',
        '    odd = picture.format == "JPEG2000" or "transparency" in picture.info or tags.get(262) == 0  # 0 is white',
        "    odd = odd or (tags.get(258), tags.get(339, (1,))) == ((32,), (1,))  # unsigned, signed to Pillow",
        '    odd = odd or (how == "libtiff" and tags.prefix == b"MM")  # the bytes of a number are turned twice',
        "if odd:",
        '    raise ValueError("this kind of grey is not read here; save it as a grey PNG without alpha")',
        'top = stored[-1] if (picture.format, picture.mode) == ("PPM", "I") and isinstance(stored, tuple) else 65535',
    ]


def _deep(model: Portable) -> Sequence[str]:
    """Lines that bring grey of more than 8 bits to 8, as the run's images were, which Pillow would cut off at 255."""
    if not (windows := _windows(model)):
        return []
    shown = {kind: (low, high if high > low else low + 255) for kind, (low, high) in windows.items()}
    text = f"{{'I': (0.0, top), 'F': (0.0, {TOP['F']})}}" if model.run.grey_range == "full" else repr(shown)
    return [
        'if picture.mode[0] in "IF":  # grey of more than 8 bits',
        f"    low, high = {text}[picture.mode[0]]",
        "    levels = np.asarray(picture, np.float64)",
        "    if top < 65535:  # the white of a PGM, whose levels Pillow has scaled",
        "        levels = (levels * top / 65535).round()",
        "    grey = (np.nan_to_num(levels, nan=low, posinf=high, neginf=low) - low) / (high - low)",
        "    picture = Image.fromarray((255 * grey.clip(0, 1)).round().astype(np.uint8))",
    ]


def _windows(model: Portable) -> dict[str, tuple[float, float]]:
    """{kind of grey with more than 8 bits: the levels that are black and white}."""
    chosen = model.run.grey_range
    if chosen == "full":
        return {kind: (0.0, top) for kind, top in TOP.items()}
    if isinstance(chosen, str):
        return {}
    each = dict.fromkeys(KINDS, chosen) if isinstance(chosen, Sequence) else chosen
    return {kind: (float(low), float(high)) for kind, (low, high) in each.items()}


def _input(model: Portable) -> str:
    spec = model.backbone.input
    shape = f"(n, {spec.channels}, {spec.height}, {spec.width})"
    if _is_regression(model):
        return f"{shape} float32, as the data has them."
    kind = "grey" if spec.channels == 1 else "RGB"
    return (
        f"{shape} float32, {kind}: upright by its EXIF orientation, on white where it is transparent, the shorter side "
        "brought to size by bicubic resampling and the centre cut out; "
        f"pixels on [0, 1], less the mean {list(spec.mean)}, divided by the standard deviation {list(spec.std)}. "
        f"`config.json` has these too, and the arguments that the model is made with.{_grey(model)}"
    )


def _grey(model: Portable) -> str:
    """Between which levels grey with more than 8 bits was shown; empty where the data have none."""
    chosen = model.run.grey_range
    if chosen == "auto":
        return " Grey with more than 8 bits was shown between levels that this run has not kept, as those of sites."
    if isinstance(chosen, str):
        return ""
    each = {"": chosen} if isinstance(chosen, Sequence) else {f" of {KINDS.get(k, k)}": w for k, w in chosen.items()}
    said = ", ".join(f"{low:g} to {high:g}{kind}" for kind, (low, high) in each.items())
    return f" Grey with more than 8 bits is shown from its lowest level to its highest, {said}, as 0 to 1." * bool(said)


def _scores(model: Portable, scores: Sequence[tuple[str, str]], head_alone: Any) -> str:
    run = model.run
    score, images = SCORES[run.summary["score"]], judged_on(run.config.data)
    rows = [[f"{images} {score.title}", *(name for name, _ in scores)], ["this run", *(shown for _, shown in scores)]]
    if head_alone and head_alone[score.name] is not None:
        by_domain = head_alone[f"{score.name}_by_domain"]
        alone = [score.show(by_domain[name]) if name in by_domain else "" for name, _ in scores[:-1]]
        rows.append(["head alone", *alone, score.show(head_alone[score.name])])
    lines = [f"| {' | '.join(map(_plain, row))} |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    text = "\n".join(lines)
    if missing := run.summary.get("not_scored"):
        text += f"\n\nNot scored: {_plain(without(missing))}."
    if model.client is not None:
        text += f"\n\nOf all clients' models together, each on the {images} images of its own client."
    if len(rows) > 2:
        text += "\n\n*Head alone*: the same budget with the adapters frozen."
    return text


def _training(model: Portable) -> str:
    config, summary = model.run.config, model.run.summary
    seed = "not told" if model.noise_is_of_the_seed else config.seed
    rows = {
        "method": f"`strategy={config.strategy.name}`, `reinit={config.reinit.name}`",
        "start": f"`init={config.init.name}`, `head={config.head.name}`",
        "adapters": f"`{config.adapter.kind}`, rank {config.adapter.rank}{_ranks(model)}, "
        f"scale {config.adapter.scale:g}, {summary['trainable_parameters']:,} trained parameters",
        "clients": f"{summary['clients']}, `partition={config.partition.name}`, participation {config.participation:g}",
        "rounds": f"{summary['rounds']}",
        "optimiser": f"`{config.client.optimizer}`, learning rate {config.client.lr:g}, "
        f"{config.client.batch_size} images a batch",
        "sent": f"{summary['bytes_up'] / 1e6:.1f} MB up, {summary['bytes_down'] / 1e6:.1f} MB down",
        "seed, final hash": f"{seed}, `{summary['final_hash'][:16]}`",
        "frozen weights": f"{_weights(model)}, sha256 of the tensors `{model.backbone.digest[:16]}`",
    }
    if config.privacy.name != "none":
        rows["privacy"] = _privacy(model)
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _privacy(model: Portable) -> str:
    spent = model.run.summary.get("privacy")
    if spent and "noise_drawn_by" in spent:
        return privacy_said(spent)
    # Of a version that did not say.
    return f"`privacy={model.run.config.privacy.name}`; {OF_THE_SEED}"


def _ranks(model: Portable) -> str:
    ranks = model.run.config.adapter.ranks
    return "" if ranks is None else f" (of clients `{ranks if isinstance(ranks, str) else list(ranks)}`)"


def _weights(model: Portable) -> str:
    settings = model.run.config.model
    if settings.checkpoint:
        return f"the file {_plain(re.split(r'[/:]|' + re.escape(chr(92)), settings.checkpoint)[-1])}"
    return "timm's own" if settings.pretrained else "random"


def _limits(model: Portable) -> str:
    lines = []
    if model.scores():
        lines.append(f"- The scores are of one seed, on held-out images{_of_domains(model)}.")
        if (share := model.run.config.evaluation.participation) < 1:
            lines.append(f"- Only a share of {share:g} of the clients with such images evaluated.")
    else:
        lines.append("- The run was not evaluated.")
    if not _is_regression(model):
        lines.append("- It says one of its classes of every image, also of one that shows none of them.")
    lines.append("- The licences of the frozen weights and of the images that it was trained on are not known here.")
    return "\n".join(lines)


def _of_domains(model: Portable) -> str:
    left_out = model.run.config.partition.test_domains
    if not left_out:
        return " of the same domains that were trained on"
    return f"; of {_plain(', '.join(left_out))}, which nobody trained on, on all images"


def _is_regression(model: Portable) -> bool:
    return model.run.config.data.is_regression


def _plain(text: str) -> str:
    """Text without meaning to Markdown, on one line."""
    return _MARKDOWN.sub(r"\\\1", printable(" ".join(text.split())))
