"""What a file is, from the names and shapes of its tensors alone.

Three tables hold the knowledge: `LAYOUTS` (what can be used, and how its names translate), `RELATIVES` (autoencoders
that look like those but are not) and `OTHER_MODELS` (what people put into the folder by mistake).
"""

from __future__ import annotations

from collections.abc import Mapping

from sd_vae_kit.core.files import key_names
from sd_vae_kit.core.files.completeness import complete_names, refuse_quantised
from sd_vae_kit.core.files.detection import Detection, Shape
from sd_vae_kit.core.files.family_of_header import families_of_header, unusual_traits
from sd_vae_kit.core.files.header import TensorInfo
from sd_vae_kit.core.files.hyper_parameters import kl_config, part_of, tiny_config
from sd_vae_kit.core.files.layouts import LAYOUTS, Layout
from sd_vae_kit.core.files.other_models import refuse_relatives, what_it_is
from sd_vae_kit.errors import UnsupportedVaeError

_Groups = Mapping[str, Mapping[str, TensorInfo]]


def detect(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str] | None = None, *, label: str = "the file"
) -> Detection:
    """Say what a file is.

    Args:
        tensors: Names and shapes, as `read_header` gives them.
        metadata: The file's own; `family`, which this program writes, decides between families of equal shape.
        label: What messages call the file.

    Raises:
        UnsupportedVaeError: It is something else; the message says what it looks like, or what is nearest.
        BrokenVaeError: It is a VAE, and incomplete or of contradictory shapes; the message lists names.
    """
    groups = {
        prefix: {rest: tensors[name] for rest, name in names.items()}
        for prefix, names in key_names.group_by_prefix(tensors).items()
    }
    found = _best_layout(groups)
    if found is None:
        raise UnsupportedVaeError(what_it_is(label, tensors, groups))
    layout, prefix, names = found
    group = groups[prefix]
    refuse_relatives(label, layout, group, names)
    refuse_quantised(label, {canonical: group[rest] for canonical, rest in names.items()})
    shapes = {canonical: _canonical_shape(canonical, group[rest]) for canonical, rest in names.items()}
    config = kl_config(label, shapes) if layout.kind == "kl" else tiny_config(label, shapes)
    kept = complete_names(label, layout, shapes, config)
    families, known_by, warnings = families_of_header(config, tensors, (metadata or {}).get("family", ""))
    return Detection(
        kind=layout.kind,
        part=part_of(shapes),
        layout=layout.name,
        config=config,
        names={canonical: prefix + names[canonical] for canonical in kept},
        families=families,
        family_known_by=known_by,
        warnings=(*unusual_traits(config, shapes), *warnings),
    )


def _best_layout(groups: _Groups) -> tuple[Layout, str, dict[str, str]] | None:
    """The layout and prefix with most names of its own, and those: canonical name -> name behind the prefix."""
    candidates = [
        (layout, prefix, _translated(layout, group))
        for layout in LAYOUTS
        for prefix, group in groups.items()
        if layout.condition.match(group)
    ]
    return max(candidates, key=lambda candidate: len(candidate[2]), default=None)


def _translated(layout: Layout, group: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Canonical name -> name behind the prefix."""
    return {canonical: rest for rest, canonical in layout.translate(group).items() if canonical is not None}


def _canonical_shape(canonical: str, info: TensorInfo) -> Shape:
    if key_names.is_attention_matrix(canonical) and 2 <= len(info.shape) < 4:
        return (*info.shape[:2], 1, 1)
    return info.shape
