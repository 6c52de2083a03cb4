"""A pasted infotext: the values for the form, and the VAE that it names made live."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sd_vae_kit.errors import OptionError, PictureError
from sd_vae_kit.pictures import infotext
from sd_vae_kit.pictures import picture_file as pictures
from sd_vae_kit.pictures.infotext import Infotext
from sd_vae_kit.standalone import paste
from sd_vae_kit.standalone.demo_model import NAME
from sd_vae_kit.standalone.page_vaes import PageVaes
from sd_vae_kit.standalone.pages.backend_protocol import Pasted
from sd_vae_kit.web.vae_gallery import VaeGallery


@dataclass(frozen=True)
class PagePasting:
    """Implements `PastingBackend`.

    Attributes:
        vaes: Finds and chooses the VAE that a text names.
        gallery: Knows where to get one that is not here.
    """

    vaes: PageVaes
    gallery: VaeGallery

    def infotext_of(self, path: Path) -> str:
        text = pictures.read_infotext(path)
        if not text:
            raise PictureError(f"{path.name} carries no parameters; only pictures that were saved with them do.")
        return text

    def paste(self, text: str) -> Pasted:
        if not text.strip():
            raise OptionError("There is nothing to paste; drop a picture or enter the text of its parameters.")
        info = infotext.parse(text)
        values, notes = paste.values_of(info)
        said, missing = self._choose_vae(info)
        notes += said
        if info.fields.get("Model", NAME) != NAME:
            notes.append(f"That picture was made with the model {info.fields['Model']}, not with the loaded one.")
        if not info.fields:
            notes.append("There is no line of parameters in that text; all of it was taken as the prompt.")
        return Pasted(values, tuple(notes) or ("Restored.",), missing)

    def _choose_vae(self, info: Infotext) -> tuple[list[str], str]:
        """Make the text's VAE live: what to tell the user, and the catalogue's name of one that can be installed."""
        wanted = paste.find_vae(info, self.vaes.library)
        if wanted is None:
            return [], ""
        notes, missing = [wanted.note] if wanted.note else [], ""
        if wanted.name is None:
            missing, hint = self.gallery.missing(info.fields.get("VAE hash", ""))
            return [*notes, *([hint] if hint else [])], missing
        if wanted.entry is None or wanted.entry.path != self.vaes.selection.live_entry.path:
            self.vaes.choose(wanted.name)
            notes.append(f"The SD VAE is now {wanted.name}.")
        return notes, missing
