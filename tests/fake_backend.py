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
        self.messages: list[Message] = []
        self.settings = FakeSettings()
        self.vaes = FakeVaes(self.settings, self.messages)
        self.jobs = FakeJobs()
        self.pasting = FakePasting()

    def take_messages(self) -> list[Message]:
        messages = self.messages[:]
        self.messages.clear()
        return messages


class FakeSettings:
    def __init__(self) -> None:
        self.now = Settings()

    def values(self) -> dict[str, Value]:
        return to_values(self.now)

    def change(self, values: Mapping[str, object]) -> None:
        self.now = with_values(self.now, values)


class FakeVaes:
    names = ("Automatic", "None", "a.safetensors", "b.safetensors")

    def __init__(self, settings: FakeSettings, messages: list[Message]) -> None:
        self.settings, self.messages = settings, messages

    def top_bar(self) -> TopBar:
        chosen = self.settings.now.vae.sd_vae
        reason = Sentence.of("because {}", f"<{chosen}>")
        return TopBar(("demo",), "demo", self.names, chosen, "a.safetensors", "0123456789", reason)

    def refresh(self) -> None:
        self.messages.append(Message("2 VAE files."))

    def choose_checkpoint(self, name: str) -> None:
        raise OptionError(f"There is no checkpoint {name!r}.")

    def choose(self, name: str) -> None:
        if name not in self.names:
            raise VaeNotFoundError(f"{name} is not there.")
        self.settings.change({"sd_vae": name})

    def rows(self) -> list[VaeRow]:
        return [
            VaeRow("a.safetensors", "SD 1.x / 2.x", "KL", "3.1 MB", active=True),
            VaeRow("<b>.safetensors", "", "", "0 B", problem="The file is empty."),
        ]

    def facts(self, name: str) -> Iterator[VaeFacts]:
        yield VaeFacts(name, (("Name", name), ("sha256", "40 % read")))
        yield VaeFacts(name, (("Name", name), ("sha256", "abc")), warnings=("Odd.",))


class FakeJobs:
    def __init__(self) -> None:
        self.started: dict[str, Txt2Img] = {}
        self.interrupted = False
        self.snapshots = [
            Snapshot("running", 0, 2, "encoding"),
            Snapshot("running", 1, 2, "sampling", b"jpeg"),
            Snapshot("done", 2, 2, pictures=(Finished(Path("one.png"), "Steps: 2", 7),), message="2 steps in 1.0 s"),
        ]

    def start(self, tab: str, job: Txt2Img) -> None:
        self.started[tab] = job

    def snapshot(self, tab: str) -> Snapshot:
        return self.snapshots[-1] if tab in self.started else Snapshot()

    def watch(self, tab: str) -> Iterator[Snapshot]:
        yield from self.snapshots if tab in self.started else [Snapshot()]

    def interrupt(self) -> None:
        self.interrupted = True

    def last_job(self, tab: str) -> Txt2Img | None:
        return self.started.get(tab)

    def forecast(self, size, tiling):
        return Sentence.of("{} will run {}", f"{size[1]}x{size[0]}", f"<{tiling.tiling}>")

    def picture_size(self, path: Path) -> tuple[int, int]:
        return 64, 128


class FakePasting:
    def infotext_of(self, path: Path) -> str:
        return "cat\nSteps: 2, Seed: 7"

    def paste(self, text: str) -> Pasted:
        return Pasted({"prompt": text, "seed": 7}, ("a.safetensors was found by its hash.",))
