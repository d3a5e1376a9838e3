"""Image files to uint8 pixels, by Pillow: the same on the device as in training. Only what converts without loss."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compressor.errors import DataError, first_line
from compressor.recipe_data import Resize

if TYPE_CHECKING:
    from PIL.Image import Image

# Named, because Pillow would otherwise open anything, PostScript by another program included.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
# 64 million pixels are 192 MB when decoded; a small file can claim any number of them.
_MOST_PIXELS = 1 << 26
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA"}


def decode_image(source: Path | bytes, shape: tuple[int, int, int], resize: Resize) -> NDArray[np.uint8]:
    """The image of a file, or of a file's content: uint8 of `shape`, [height, width, channels].

    It is turned upright as its EXIF data say. Grey becomes three equal channels, three equal channels become grey; a
    palette becomes its colours, alpha that is opaque throughout is dropped. An image of another size is refused,
    stretched, or cut to the shape of its middle and scaled, with Pillow's bilinear filter, which averages over all
    pixels that one is made of.

    Raises DataError in words that say what is wrong with it, without a name: not an image, truncated, of more than
    64 million pixels, several frames, a mode that does not convert without loss, another size. Raises DataError where
    Pillow is not installed.
    """
    height, width, channels = shape
    image = _opened(source)
    if image.mode not in _MODES:
        raise DataError(f"mode {image.mode} does not convert to 8 bits per channel without loss")
    image = _opaque(image)
    if channels == 1:
        image = _grey(image)
    if image.size != (width, height):
        image = _fitted(image, width, height, resize)
    pixels = np.asarray(image if channels == 1 else image.convert("RGB"))
    return pixels[..., None] if channels == 1 else pixels


def _opened(source: Path | bytes) -> Image:
    """Loaded whole, upright, of one frame."""
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise DataError("reading image files needs Pillow (pip install pillow), or pass a uint8 array") from None
    if isinstance(source, Path) and source.exists() and not source.is_file():
        raise DataError("no regular file")
    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=_FORMATS) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise DataError(f"{image.width} x {image.height} pixels; at most {_MOST_PIXELS:,} are read")
            if getattr(image, "is_animated", False):  # to count them would take as long as there are many
                raise DataError("several frames; expected one")
            image.load()
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise DataError("not an image that can be read") from None
    except FileNotFoundError:
        raise DataError("no such file") from None
    except DataError:
        raise
    except Exception as error:  # Pillow passes on whatever its decoders stumble over in damaged data
        raise DataError(f"not readable: {first_line(error)[:200]}") from None


def _opaque(image: Image) -> Image:
    """As RGB, or as L where it is grey by its mode."""
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise DataError("it is transparent in places; put it on a background first")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _grey(image: Image) -> Image:
    if image.mode == "L":
        return image
    pixels = np.asarray(image)
    if (pixels != pixels[..., :1]).any():
        raise DataError("it has colours, and one channel is expected (data.mean has one value)")
    return image.getchannel("R")


def _fitted(image: Image, width: int, height: int, resize: Resize) -> Image:
    from PIL.Image import Resampling
    from PIL.ImageOps import fit

    if resize == "refuse":
        raise DataError(
            f"{image.height} x {image.width} pixels, expected {height} x {width};"
            " resize the files, or set data.resize to stretch or crop"
        )
    if resize == "stretch":
        return image.resize((width, height), Resampling.BILINEAR)
    return fit(image, (width, height), Resampling.BILINEAR)
