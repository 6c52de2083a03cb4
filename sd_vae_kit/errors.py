"""Every error this package raises on purpose; a caller that shows errors to a user catches `VaeKitError` only.

A message is one line for the user: what is wrong, the values seen, what to do.
"""


class VaeKitError(Exception):
    """Base class of all deliberate errors."""


class UnsupportedVaeError(VaeKitError):
    """The file is not a VAE this program knows; the message names the nearest kind and what is missing."""


class BrokenVaeError(VaeKitError):
    """The file was meant to be a VAE but cannot be used: truncated, empty, incomplete, NaN in the weights."""


class UnsafeFileError(VaeKitError):
    """A pickle that would run code when opened; nothing of it was executed."""


class VaeMismatchError(VaeKitError, ValueError):
    """The VAE does not fit the loaded model or the latent, such as 16 latent channels where 4 are needed."""


class VaeNotFoundError(VaeKitError, LookupError):
    """No VAE of that name or hash is in the folders that were searched."""


class PictureError(VaeKitError, ValueError):
    """A picture file that cannot be read or is of a size that cannot be processed."""


class LatentFileError(VaeKitError, ValueError):
    """A latent file without a usable `latent` tensor."""


class SettingError(VaeKitError, ValueError):
    """A setting's value outside its limits or of the wrong type."""


class OptionError(VaeKitError, ValueError):
    """An option that cannot be honoured; it is refused, never ignored."""


class PlanError(VaeKitError):
    """No plan could be made or a plan does not fit its input."""


class NoMemoryError(PlanError):
    """Memory ran out with every plan, the smallest included; the message lists them."""


class StepAsideError(VaeKitError):
    """This network is not ours to run: its structure or one of its layers is unknown, so the host's own path is used.

    The message is the reason, said to the user once.
    """


class NanError(VaeKitError):
    """A result is not finite even in full precision; the message says whether latent or weights are to blame."""


class Interrupted(VaeKitError):  # noqa: N818 - not a failure: the user asked for it
    """The user stopped the work."""


class DownloadError(VaeKitError):
    """A file could not be fetched; nothing half-installed is left."""


class OfflineError(DownloadError):
    """Downloads are switched off; nothing was contacted."""


class TransferError(DownloadError):
    """A connection or server failed; what arrived is kept and the next try goes on from there."""


class RefusedAddressError(DownloadError):
    """An address that is not contacted: not https, or unable to prove its identity."""


class WrongContentError(DownloadError):
    """Something else than the expected file arrived: other hash or length, a web page, compressed."""


class NoSpaceError(DownloadError):
    """The disk is full, or would be."""


class TargetExistsError(DownloadError):
    """Another file has the name already; it was not touched."""


class ConsentError(DownloadError):
    """The file is only fetched after the user agreed: it cannot be verified, or its licence is unclear."""


class RulesError(VaeKitError, ValueError):
    """A rules file that does not follow its schema; the message names the rule and what is wrong with it."""
