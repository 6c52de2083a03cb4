"""The files that this extension keeps beside a web UI's own."""

from __future__ import annotations

from sd_vae_kit.errors import VaeKitError
from sd_vae_kit.hosts.parts import HostFiles, HostFolders
from sd_vae_kit.vaes import history
from sd_vae_kit.vaes.catalogue import catalogue, with_own_entries
from sd_vae_kit.vaes.family_finder import FamilyFinder
from sd_vae_kit.vaes.guard import FamilyGuard
from sd_vae_kit.vaes.history import History
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.rules import FILE_NAME, RulesFile


def open_kept_files(library: Library, folders: HostFolders) -> HostFiles:
    """What this extension keeps; a catalogue of the user's own that cannot be read is left out."""
    data, known, problem = folders.data, catalogue(), ""
    try:
        known = with_own_entries(data / "catalogue.json")
    except VaeKitError as error:
        problem = str(error)
    return HostFiles(
        folders=folders,
        catalogue_problem=problem,
        guard=FamilyGuard(FamilyFinder(library, data / "families.json", known)),
        rules=RulesFile(data / FILE_NAME),
        history=History(data / history.FILE_NAME),
    )
