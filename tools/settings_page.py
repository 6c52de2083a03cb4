"""Write docs/settings.md, every control with what it does, from the settings: `python -m tools.settings_page`.

A test compares the file with this program's output, so that no control is missing there and no sentence is told twice.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sd_vae_kit.settings.job import JOB_SPECS  # noqa: E402
from sd_vae_kit.settings.repairs import REPAIR_SPECS  # noqa: E402
from sd_vae_kit.settings.sections import SECTION_TITLES, SPECS  # noqa: E402
from sd_vae_kit.settings.spec import Spec  # noqa: E402

PAGE = ROOT / "docs" / "settings.md"
INTRODUCTION = """\
# All settings

Made by `python -m tools.settings_page` from the settings in `sd_vae_kit/settings`; change them there.

In the stand-alone app they are on the tab *Settings*, in a web UI on the settings page *VAE Kit*, without those that
the web UI has itself. *Key* is the name in `settings.json` of the data folder, in a web UI's `config.json`, and in a
request's `override_settings`. *Values* are shown as on the page; where another word is saved and sent, it follows in
brackets.
"""
REPAIRS = """\
A web UI's own faults, each repaired without changing its files, and each with a switch. The stand-alone app has none.
"""
JOB = """\
What one job may choose for itself: in the panel under txt2img and img2img, in the API's `alwayson_scripts`, on X/Y/Z
axes, and in a pasted picture's parameters, under the name given here. *Key* is the name in the API's arguments.
"""


def page() -> str:
    """The whole file."""
    parts = [INTRODUCTION]
    for name, title in SECTION_TITLES.items():
        parts += [f"## {title}\n", table([spec for spec in SPECS if spec.section == name])]
    parts += ["## Repairs\n", REPAIRS, table(REPAIR_SPECS)]
    parts += ["## One job\n", JOB, table(JOB_SPECS, job=True)]
    return "\n".join(parts)


def table(listed: Iterable[Spec], *, job: bool = False) -> str:
    """One section's rows; of a job's the name instead of the key, and what is written into pictures."""
    head = "| setting | what it does | values | default | key |" + (" in pictures |" if job else "")
    lines = [head, "|---|---|---|---|---|" + ("---|" if job else "")]
    for spec in listed:
        cells = [spec.label, spec.help, values(spec), shown(spec, spec.default), f"`{spec.name if job else spec.key}`"]
        cells += [f"`{spec.infotext}`"] if job else []
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def values(spec: Spec) -> str:
    """What may be chosen."""
    if spec.control == "checkbox":
        return "on, off"
    if spec.control == "vae":
        return "a file of the list, Automatic, None"
    if spec.control == "choice":
        return ", ".join(shown(spec, choice.identifier) for choice in spec.choices)
    if spec.control == "text":
        return "text"
    return with_unit(spec, f"{spec.minimum:,g} to {spec.maximum:,.0f}")


def shown(spec: Spec, value: object) -> str:
    """A value as the page shows it, and as it is saved where that is another word."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if spec.control == "choice":
        label = spec.label_of(value)
        return label if label == value else f"{label} (`{value}`)"
    if isinstance(value, int | float):
        return with_unit(spec, f"{value:,g}")
    return str(value) or "empty"


def with_unit(spec: Spec, number: str) -> str:
    return f"{number} {spec.unit}" if spec.unit else number


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    print(PAGE)
