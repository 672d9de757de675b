"""Which timm models can be adapted, and where: ``python scripts/models_table.py > docs/models.md``.

One small model of every kind that timm's transformers, mixers and their hybrids come in is built without weights and
taken through the start of a run; then a bank of three clients is asked whether one client's features move with the
adapters of the others. It takes some minutes.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator

import timm
import torch

from fedinit.adapters.bank import Bank
from fedinit.config.schema import ModelConfig
from fedinit.errors import InputError
from fedinit.factors import Factors
from fedinit.models import Backbone, adapted_layers, build_backbone
from fedinit.models.blocks import default_layers

LARGEST = 130  # million parameters: what is larger is looked at and not run
NAMES = """
beit_base_patch16_224 beitv2_base_patch16_224 cait_xxs24_224 coat_lite_tiny coat_tiny convit_tiny convnext_atto
convnext_tiny crossvit_tiny_240 davit_tiny deepseek_vit_412m deit_tiny_patch16_224 deit_tiny_distilled_patch16_224
deit3_small_patch16_224 edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientvit_b0 efficientvit_m0
eva02_tiny_patch14_224 eva02_base_patch16_clip_224 vit_small_patch16_dinov3 vit_small_patch16_dinov3_qkvb
vit_small_plus_patch16_dinov3 vit_pe_core_tiny_patch16_384 vit_base_patch16_sapiens2
vit_small_patch16_rope_224 vit_small_patch16_rope_mixed_224 fastvit_t8 fastvit_sa12 focalnet_tiny_srf gcvit_xxtiny
gemma4_vit_167m hiera_tiny_224 hiera_small_abswin_256 sam2_hiera_tiny iformer_t levit_128s levit_conv_128s lowformer_b0
mambaout_femto coatnet_nano_rw_224 coatnet_rmlp_nano_rw_224 maxvit_pico_rw_256 maxvit_rmlp_pico_rw_256
maxvit_tiny_pm_256 maxxvit_rmlp_nano_rw_256 maxxvitv2_nano_rw_256 caformer_s18 poolformerv2_s12 mixer_s32_224
gmixer_12_224 gmlp_ti16_224 resmlp_12_224 mobilevit_xxs mobilevitv2_050 mvitv2_tiny naflexvit_base_patch16_gap
naflexvit_base_patch16_siglip nest_tiny nextvit_small pit_ti_224 pit_ti_distilled_224 pvt_v2_b0 qwen3_vit_88m
repvit_m1 sequencer2d_s shvit_s1 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window8_256
swinv2_cr_tiny_ns_224 tiny_vit_5m_224 tnt_s_patch16_224 twins_pcpvt_small twins_svt_small visformer_tiny
vit_tiny_patch16_224 vit_small_patch14_dinov2 vit_small_patch14_reg4_dinov2 vit_base_patch16_siglip_224
vit_base_patch16_clip_224 vit_small_patch16_18x2_224 vit_pwee_patch16_reg1_gap_256 vit_dpwee_patch16_reg1_gap_256
vit_tiny_r_s16_p8_224 vit_relpos_small_patch16_224 vit_srelpos_small_patch16_224 samvit_base_patch16_224
vitamin_small_224 volo_d1_224 xcit_nano_12_p16_224
""".split()
REFUSALS = re.compile(r"^(model\.name=\w+: |adapter\.targets: )")


def settings(name: str) -> ModelConfig:
    """`model.<field>=` of the model without weights."""
    return ModelConfig(name=name, kwargs={}, checkpoint=None, pretrained=False, image_size=None, mean=None, std=None)


def family(name: str) -> str:
    """timm's module that the model is in."""
    return timm.model_entrypoint(name).__module__.rpartition(".")[2]


def patterns(names: Iterable[str]) -> str:
    """ "`blocks.*.mlp.fc2` ×12" for every kind of layer among these."""
    counts = Counter(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names)
    return ", ".join(f"`{pattern}` ×{count}" for pattern, count in counts.items())


def leak(backbone: Backbone, targets: dict[str, tuple[int, int]]) -> float:
    """How far a client's features move, relative, when only the adapters of its two mates in a bank change."""
    spec, draw = backbone.input, torch.Generator().manual_seed(0)
    images = torch.randn(3, spec.channels, spec.height, spec.width, generator=draw)

    def drawn() -> dict[str, Factors]:
        return {
            name: Factors(torch.randn(1, k, generator=draw) / k**0.5, torch.randn(d, 1, generator=draw))
            for name, (d, k) in targets.items()
        }

    bank, mine, features = Bank(backbone, targets, 1.0), drawn(), []
    for _ in range(2):
        bank.load([mine, drawn(), drawn()], [{}] * 3)
        with torch.no_grad():
            features.append(bank.forward(images, 3)[0])
    return float((features[1] - features[0]).norm() / features[0].norm())


def row(name: str) -> tuple[str, str, str]:
    """(what the model's features are, the default targets, or a dash; "yes", or why it is refused)."""
    with torch.device("meta"):
        bare = timm.create_model(name, num_classes=0)
    size = sum(p.numel() for p in bare.parameters()) / 1e6
    if size > LARGEST:
        return "", patterns(default_layers(bare)) or "—", f"not tried: {size:.0f} million parameters"
    try:
        backbone = build_backbone(settings(name))
        targets = adapted_layers(backbone, None, 1)
    except InputError as error:
        return "", "—", "no: " + REFUSALS.sub("", str(error)).replace("|", "\\|")
    moved = leak(backbone, targets)
    if not moved <= 1e-4:
        raise AssertionError(f"{name}: a client's features move by {moved:.1e} with its mates' adapters")
    return str(backbone.features), patterns(targets), "yes"


def table(names: Iterable[str]) -> Iterator[str]:
    """One Markdown table, a row a model."""
    yield "| timm's module | model | features | adapted by default | works |"
    yield "|---|---|---|---|---|"
    for name in names:
        print(name, file=sys.stderr)
        yield f"| {family(name)} | `{name}` | {' | '.join(row(name))} |"


def page() -> str:
    """The whole of docs/models.md."""
    return "\n".join(
        [
            "# Models",
            "",
            f"Made by `python scripts/models_table.py > docs/models.md` with timm {timm.__version__}: one small model",
            "of every kind that timm's transformers, mixers and their hybrids come in, built without weights and taken",
            "through the start of a run. Larger models of a kind have the same layers. Adapted by default are, in each",
            "block, the layers by which attention and the MLP give to the residual stream (fedinit/models/blocks.py);",
            "`adapter.targets=` takes any other linear layer that is called once a pass with the batch in front, and",
            "says which there are.",
            "",
            *table(NAMES),
            "",
        ]
    )


if __name__ == "__main__":
    print(page(), end="")
