"""Choosing a VAE: read, convert and check it completely, then exchange the live weights, or change nothing at all.

What lies in RAM: per remembered VAE its tensors as they are in the file (`pristine`, read only, never inside a module)
and, while another VAE is live on the CPU, a second set in the live dtype that is ready to be assigned.  That set is
filled in the background from the pristine one, into the storage that just left the module; whatever the host or a LoRA
wrote into the live weights is overwritten there, and a swap back costs milliseconds.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, is_dataclass

from torch import Tensor, nn

from sd_vae_kit.core.live_weights import LiveWeights
from sd_vae_kit.core.networks.latent_format import split_family
from sd_vae_kit.core.vae import VaeWeights, build
from sd_vae_kit.errors import VaeMismatchError
from sd_vae_kit.vaes.choice import Decision, resolve
from sd_vae_kit.vaes.entry import Entry
from sd_vae_kit.vaes.finding import Finding
from sd_vae_kit.vaes.guard import FamilyGuard
from sd_vae_kit.vaes.history import History
from sd_vae_kit.vaes.host_protocol import Checkpoint, Host
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.rules import RulesFile, Run
from sd_vae_kit.wording import Sentence

Key = tuple[str, int, int]  # path, size, modification time in ns: a replaced file is another VAE
OWN_KEY: Key = ("", 0, 0)  # the VAE the checkpoint came with
NOTHING_CHOSEN = Sentence.of("Nothing was chosen yet: the checkpoint's own VAE is used.")


class StoredVae:
    """One VAE in RAM: its pristine tensors and, sometimes, a set that may be given to the live module."""

    def __init__(self, weights: VaeWeights) -> None:
        self.weights = weights
        self._ready: Future[dict[str, Tensor]] | None = None

    def take_ready(self, live: LiveWeights) -> dict[str, Tensor]:
        """Tensors to install into `live`; they are given away, the next call makes or awaits others."""
        future, self._ready = self._ready, None
        prepared = future.result() if future else None
        return prepared if prepared is not None and live.fits(prepared) else live.prepare(self.weights.state)

    def make_ready(self, live: LiveWeights, storage: Mapping[str, Tensor], pool: ThreadPoolExecutor) -> None:
        """Fill `storage`, which no module uses any more, with the pristine values, in the background."""
        state = self.weights.state
        self._ready = pool.submit(lambda: live.prepare(state, out=storage))


@dataclass
class Slot:
    """A module that can be live and whose weights it holds."""

    weights: LiveWeights
    holding: Key

    @property
    def module(self) -> nn.Module:
        return self.weights.module

    @property
    def config(self) -> object:
        """Its architecture."""
        return self.weights.detection.config

    def refresh(self) -> LiveWeights:
        """The weights as they are found in the module now (finding them takes longer than exchanging them)."""
        if not self.weights.is_current():
            self.weights = LiveWeights(self.module)
        return self.weights


@dataclass(frozen=True)
class Active:
    """What is live now.

    Attributes:
        decision: The rule that led to it, with its reason.
        seconds: How long the exchange took; 0 where it was live already.
        warnings: Sentences for the user.
    """

    decision: Decision
    seconds: float = 0.0
    warnings: tuple[Sentence, ...] = ()

    @property
    def name(self) -> str:
        """File name in the library, or "None" for the checkpoint's own."""
        return self.decision.name


class Swapper:
    """Owns which VAE is live in one host; every method may be called from any thread."""

    def __init__(
        self,
        host: Host,
        library: Library,
        *,
        guard: FamilyGuard | None = None,
        rules: RulesFile | None = None,
        history: History | None = None,
    ) -> None:
        self._host = host
        self._library = library
        self._guard = guard
        self._rules = rules
        self._history = history
        self._lock = threading.RLock()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vae-kit-swap")
        self._stored: OrderedDict[Key, StoredVae] = OrderedDict()
        self.checkpoint_changed()

    @property
    def active(self) -> Active:
        """What is live now."""
        return self._active

    def checkpoint_changed(self) -> None:
        """Forget what was known about the live module; call after the host loaded a model, before `choose`."""
        with self._lock:
            self._own: Slot | None = None
            self._live: Slot | None = None
            self._stored.pop(OWN_KEY, None)
            self._active = Active(Decision(None, "own", NOTHING_CHOSEN))

    def resolve(self, job_vae: str | None = None, run: Run = "picture") -> Decision:
        """Which VAE the rules choose now for that pass; nothing changes.

        Raises:
            VaeNotFoundError: The rule that applies names a file that is not there.
        """
        rules = self._rules.rules if self._rules else ()
        return resolve(self._host, self._library, job_vae, rules, run)

    def choose(self, job_vae: str | None = None, run: Run = "picture") -> Active:
        """Make the VAE live that the rules choose for that pass.

        Raises:
            VaeKitError: Not found, broken, or it does not fit; the live VAE is then exactly what it was.
        """
        return self.activate(self.resolve(job_vae, run))

    def activate(self, decision: Decision) -> Active:
        """Make the decision's VAE live; weights that are live already stay untouched.

        Raises:
            VaeKitError: It cannot be used; the live VAE is then exactly what it was.
        """
        with self._lock:
            live = self._live_slot()
            key = key_of(decision.entry)
            if live.holding == key:
                self._active = Active(decision, 0.0, self._active.warnings)
                return self._active
            started = time.perf_counter()
            stored = self._fetch(decision.entry, key)
            warnings = self._check(stored.weights, decision)
            self._exchange(live, stored, key, decision.name)
            self._active = Active(decision, time.perf_counter() - started, warnings)
            self._trim()
            self._note(decision.entry)
            return self._active

    def own_weights(self) -> Mapping[str, Tensor]:
        """The checkpoint's own weights by canonical name, read only; empty while they are live."""
        with self._lock:
            stored = self._stored.get(OWN_KEY)
            return stored.weights.state if stored else {}

    def close(self) -> None:
        """Wait for background work; the live weights stay as they are."""
        self._pool.shutdown(wait=True)

    def _note(self, entry: Entry | None) -> None:
        """Write down that the loaded checkpoint is used with the file; in the background, since a disk may be slow."""
        checkpoint = self._host.checkpoint
        if self._history is not None and entry is not None and checkpoint is not None:
            self._pool.submit(self._history.note, entry, checkpoint.name)

    def _live_slot(self) -> Slot:
        module = self._host.first_stage
        if module is None:
            raise VaeMismatchError("No checkpoint is loaded, so there is no VAE to exchange; load one first.")
        if self._live is None or self._live.module is not module:
            self._live = self._own = Slot(LiveWeights(module), OWN_KEY)
            self._stored.pop(OWN_KEY, None)
        return self._live

    def _fetch(self, entry: Entry | None, key: Key) -> StoredVae:
        """From RAM, or from the file, which `Library.load` checks: complete, shapes right, no NaN."""
        if key in self._stored:
            self._stored.move_to_end(key)
            return self._stored[key]
        if entry is None:
            raise VaeMismatchError("The checkpoint's own VAE is no longer in memory; load the checkpoint again.")
        return self._stored.setdefault(key, StoredVae(self._library.load(entry)))

    def _check(self, weights: VaeWeights, decision: Decision) -> tuple[Sentence, ...]:
        """Whether the VAE speaks the loaded model's latents; warnings where it can only be suspected."""
        checkpoint = self._host.checkpoint
        if checkpoint is None or decision.entry is None:
            return ()
        refuse_other_channels(decision.name, weights.detection.z_channels, checkpoint)
        if self._guard is not None:
            return self._guarded(self._guard, weights, decision.entry, checkpoint)
        family, needs = weights.detection.family, checkpoint.latent_format
        if family and needs.name not in split_family(family):
            made_for = Finding(family, weights.detection.family_known_by).label
            words = "{} is a VAE for {}, the loaded model is {}: colours will be wrong."
            return (Sentence.of(words, decision.name, made_for, needs.label),)
        return ()

    def _guarded(
        self, guard: FamilyGuard, weights: VaeWeights, entry: Entry, checkpoint: Checkpoint
    ) -> tuple[Sentence, ...]:
        """The guard's opinion as warnings, or as an error where the user wants it so."""
        settings = self._host.settings.guard
        if settings.wrong_family == "off":
            return ()
        verdict = guard.check(entry, checkpoint, settings, weights)
        if verdict.state in ("wrong", "impossible") and settings.wrong_family == "refuse":
            raise VaeMismatchError(verdict.message)
        return (verdict.message,) if verdict.message else ()

    def _exchange(self, live: Slot, stored: StoredVae, key: Key, label: str) -> None:
        """Change what is live; all that can fail on the user's account is done before the first byte moves."""
        target = self._slot_for(live, stored.weights, key, label)
        weights = target.refresh()
        prepared, previous = None, {}
        if target.holding != key:
            weights.check(stored.weights.state, label)
            prepared = stored.take_ready(weights)
        with self._host.vae_writing():
            if prepared is not None:
                previous = weights.install(prepared, keep=target.holding == OWN_KEY)
            if target.module is not live.module:
                try:
                    self._host.replace_first_stage(target.module)
                except BaseException:
                    if prepared is not None:
                        weights.install(previous)
                    raise
        if prepared is not None:
            self._recycle(target.holding, weights, previous)
        target.holding = key
        self._live = target
        self._host.on_vae_changed()

    def _slot_for(self, live: Slot, weights: VaeWeights, key: Key, label: str) -> Slot:
        """A module of the VAE's architecture: the live one, the checkpoint's own, or a new one where hosts allow."""
        config = weights.detection.config
        for slot in (live, self._own):
            if slot is not None and slot.config == config:
                return slot
        if not self._host.can_replace_first_stage:
            raise VaeMismatchError(
                f"{label} is built differently from the loaded model's VAE ({_differences(config, live.config)}), "
                f"and {self._host.name} cannot exchange the network itself; choose a VAE of the same architecture."
            )
        copies = {name: tensor.clone() for name, tensor in weights.state.items()}
        return Slot(LiveWeights(build(VaeWeights(weights.detection, copies, weights.metadata))), key)

    def _recycle(self, left: Key, weights: LiveWeights, previous: dict[str, Tensor]) -> None:
        """Let the VAE that just left become ready again, in the storage it had if no module uses that any more."""
        if left == OWN_KEY and OWN_KEY not in self._stored:
            self._stored[OWN_KEY] = StoredVae(VaeWeights(weights.detection, previous, {}))
            previous = {}  # this storage is the pristine copy now
        stored = self._stored.get(left)
        if stored is not None and weights.on_cpu:
            stored.make_ready(weights, previous, self._pool)

    def _trim(self) -> None:
        """Forget the least recently used VAEs beyond the setting; the checkpoint's own is always kept."""
        files = [key for key in self._stored if key != OWN_KEY]
        for key in files[: max(0, len(files) - self._host.settings.vae.cache)]:
            del self._stored[key]


def _differences(config: object, other: object) -> str:
    """What differs between two architectures, for an error message."""
    if type(config) is not type(other):
        return (
            f"{type(config).__name__.removesuffix('Config')} instead of {type(other).__name__.removesuffix('Config')}"
        )
    ours, theirs = vars(config), vars(other)
    unequal = [name for name in ours if ours[name] != theirs[name]]
    if any(is_dataclass(ours[name]) and is_dataclass(theirs[name]) for name in unequal):
        # encoder and decoder usually differ in the same way
        parts = [_differences(ours[name], theirs[name]) for name in unequal if is_dataclass(ours[name])]
        return ", ".join(dict.fromkeys(parts))
    return ", ".join(f"{name} {ours[name]} instead of {theirs[name]}" for name in unequal)


def key_of(entry: Entry | None) -> Key:
    """What identifies a VAE in RAM."""
    return (str(entry.path), entry.size, entry.mtime_ns) if entry else OWN_KEY


def refuse_other_channels(name: str, z_channels: int, checkpoint: Checkpoint) -> None:
    """Raise `VaeMismatchError` unless a VAE with `z_channels` latent channels can serve the checkpoint."""
    needed = checkpoint.latent_format.z_channels
    if z_channels != needed:
        raise VaeMismatchError(
            f"{name} has {z_channels} latent channels, the loaded model ({checkpoint.latent_format.label}) needs "
            f"{needed}; choose an {checkpoint.latent_format.label} VAE."
        )
