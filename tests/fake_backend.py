"""A backend of plain data behind the pages: no torch, no files, every call is remembered."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from sd_vae_kit.errors import OptionError, VaeNotFoundError
from sd_vae_kit.settings.sections import Settings, to_values, with_values
from sd_vae_kit.settings.spec import Value
from sd_vae_kit.standalone.job import Finished, Snapshot, Txt2Img
from sd_vae_kit.standalone.pages.backend_protocol import Pasted, TopBar, VaeFacts, VaeRow
from sd_vae_kit.web.message import Message
from sd_vae_kit.wording import Sentence


class FakeBackend:
    def __init__(self) -> None:
        self.settings = Settings()
        self.vaes = ("Automatic", "None", "a.safetensors", "b.safetensors")
        self.jobs: dict[str, Txt2Img] = {}
        self.messages: list[Message] = []
        self.interrupted = False
        self.snapshots = [
            Snapshot("running", 0, 2, "encoding"),
            Snapshot("running", 1, 2, "sampling", b"jpeg"),
            Snapshot("done", 2, 2, pictures=(Finished(Path("one.png"), "Steps: 2", 7),), message="2 steps in 1.0 s"),
        ]

    def top_bar(self) -> TopBar:
        chosen = self.settings.vae.sd_vae
        return TopBar(
            ("demo",),
            "demo",
            self.vaes,
            chosen,
            "a.safetensors",
            "0123456789",
            Sentence.of("because {}", f"<{chosen}>"),
        )

    def refresh(self) -> None:
        self.messages.append(Message("2 VAE files."))

    def choose_checkpoint(self, name: str) -> None:
        raise OptionError(f"There is no checkpoint {name!r}.")

    def choose_vae(self, name: str) -> None:
        if name not in self.vaes:
            raise VaeNotFoundError(f"{name} is not there.")
        self.settings = with_values(self.settings, {"sd_vae": name})

    def start(self, tab: str, job: Txt2Img) -> None:
        self.jobs[tab] = job

    def snapshot(self, tab: str) -> Snapshot:
        return self.snapshots[-1] if tab in self.jobs else Snapshot()

    def watch(self, tab: str) -> Iterator[Snapshot]:
        yield from self.snapshots if tab in self.jobs else [Snapshot()]

    def interrupt(self) -> None:
        self.interrupted = True

    def last_job(self, tab: str) -> Txt2Img | None:
        return self.jobs.get(tab)

    def forecast(self, size, tiling):
        return Sentence.of("{} will run {}", f"{size[1]}x{size[0]}", f"<{tiling.tiling}>")

    def picture_size(self, path: Path) -> tuple[int, int]:
        return 64, 128

    def vae_rows(self) -> list[VaeRow]:
        return [
            VaeRow("a.safetensors", "SD 1.x / 2.x", "KL", "3.1 MB", active=True),
            VaeRow("<b>.safetensors", "", "", "0 B", problem="The file is empty."),
        ]

    def vae_facts(self, name: str) -> Iterator[VaeFacts]:
        yield VaeFacts(name, (("Name", name), ("sha256", "40 % read")))
        yield VaeFacts(name, (("Name", name), ("sha256", "abc")), warnings=("Odd.",))

    def values(self) -> dict[str, Value]:
        return to_values(self.settings)

    def change(self, values: Mapping[str, object]) -> None:
        self.settings = with_values(self.settings, values)

    def infotext_of(self, path: Path) -> str:
        return "cat\nSteps: 2, Seed: 7"

    def paste(self, text: str) -> Pasted:
        return Pasted({"prompt": text, "seed": 7}, ("a.safetensors was found by its hash.",))

    def take_messages(self) -> list[Message]:
        messages, self.messages = self.messages, []
        return messages
