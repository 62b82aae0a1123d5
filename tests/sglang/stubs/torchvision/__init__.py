"""Import-only: images are not for language models."""

from import_only import install

install("torchvision", __version__="0.0.0")
