"""Fetching a known file over the network, so that either exactly that file is there afterwards or nothing is.

`fetch` tries addresses, `transport` opens connections that can be ended from outside, `part_file` keeps what arrived.
docs/downloads.md has the table of faults and what comes of each.
"""

from sd_vae_kit.download.fetch import DownloadProgress, Source, download

__all__ = ["DownloadProgress", "Source", "download"]
