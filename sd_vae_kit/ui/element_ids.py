"""Every DOM id of the pages; tests and style sheets use the same names."""

PREFIX = "vae_kit"


def element_id(*parts: str) -> str:
    """`element_id("txt2img", "prompt")` -> "vae_kit_txt2img_prompt"."""
    return "_".join((PREFIX, *parts))


def catalogue_id(name: str) -> str:
    """`catalogue_id("query")` -> "vae_kit_catalogue_query"."""
    return element_id("catalogue", name)


APP = element_id("app")
TOP_BAR = element_id("top_bar")
CHECKPOINT = element_id("checkpoint")
CHECKPOINT_REFRESH = element_id("checkpoint_refresh")
SD_VAE = element_id("sd_vae")
SD_VAE_REFRESH = element_id("sd_vae_refresh")
ACTIVE = element_id("active")
STATUS = element_id("status")
TABS = element_id("tabs")
TXT2IMG, IMG2IMG, VAE, SETTINGS = "txt2img", "img2img", "vae", "settings"

VAE_FILE = element_id("vae", "file")
VAE_USE = element_id("vae", "use")
VAE_FACTS = element_id("vae", "facts")
VAE_TABLE = element_id("vae", "table")
VAE_REFRESH = element_id("vae", "refresh")
SETTINGS_SEARCH = element_id("settings", "search")
SETTINGS_FOUND = element_id("settings", "found")
