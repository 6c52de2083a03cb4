"""A catalogue of plain data behind the pages."""

from sd_vae_kit.errors import ConsentError, RulesError
from sd_vae_kit.vaes.gallery_row import GalleryRow
from sd_vae_kit.web.catalogue_protocol import InstallView, RuleLine
from sd_vae_kit.web.message import Message
from sd_vae_kit.wording import Sentence

ROWS = [
    GalleryRow("a.safetensors", "a.safetensors", True, "SDXL", ("sdxl",), 334641164, "63aeecb90f", is_active=True),
    GalleryRow("<b>", "<b>", True, "", (), 12, "", problem="It is <empty>."),
    GalleryRow(
        "Known", "Known", False, "SD 1.x / 2.x", ("sd1",), None, "", note="Vivid.", can_install=True, cautions=("Odd.",)
    ),
]


class FakeCatalogue:
    """`calls` remembers what was asked for."""

    def __init__(self):
        self.calls = []
        self.gallery = FakeGallery(self.calls)
        self.downloads = FakeDownloads(self.calls)
        self.files = FakeFiles()
        self.rules = FakeRules()

    def notice(self):
        return "Nothing may be <written>."

    def forget_precision(self):
        self.calls.append("forget")
        return Message("Forgotten: what 2 encoders or decoders needed.")


class FakeGallery:
    def __init__(self, calls):
        self.calls = calls

    def families(self):
        return [("SD 1.x / 2.x", "sd1"), ("SDXL", "sdxl")]

    def rows(self):
        return ROWS

    def is_missing(self, key):
        return key not in self.calls


class FakeDownloads:
    def __init__(self, calls):
        self.calls = calls

    def install(self, key, accepted):
        if not accepted:
            raise ConsentError("Not without your consent.")
        self.calls.append(key)

    def install_tiny(self):
        self.calls.append("tiny")

    def tiny_label(self):
        return "SD 1.x / 2.x"

    def cancel(self):
        self.calls.append("cancel")

    def installing(self):
        return InstallView()

    def watch(self):
        yield InstallView((Message("Known: 1.0 of 4.0 MB"),), 0.25, True)
        yield InstallView((Message("Known is installed."),))


class FakeFiles:
    def verify(self, key):
        yield InstallView((Message(f"Reading {key}."),), 0.5, True)
        yield InstallView((Message(f"{key} is right."),))

    def reveal(self, key):
        return Message(f"The file is {key}.")


class FakeRules:
    def text(self):
        return "{}"

    def save(self, text):
        raise RulesError("vae_rules.json is not valid JSON.")

    def import_cards(self, text):
        return text + "x", Message("1 rule.")

    def passes(self):
        return ("picture", "hires")

    def explain(self, text, run):
        return [
            RuleLine(1, "family <sdxl>", "a", False, Sentence.of("No.")),
            RuleLine(2, "always", "b", True, Sentence.of("Yes.")),
        ]
