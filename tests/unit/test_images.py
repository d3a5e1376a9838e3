"""Image files to pixels: what converts without loss, what is refused, how another size is treated."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from compressor.errors import DataError
from compressor.images import decode_image
from compressor.recipe_data import Resize

RGB = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
GREY = RGB[..., 0]
SHAPE = (4, 6, 3)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width: int, height: int, content: bytes, colour: int = 2) -> bytes:
    """By hand, after the PNG specification: 8 bits per channel, one IDAT chunk."""
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def refused(content: bytes, shape: tuple[int, int, int] = SHAPE, resize: Resize = "refuse") -> str:
    with pytest.raises(DataError) as raised:
        decode_image(content, shape, resize)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_png_written_by_hand(tmp_path: Path) -> None:
    """Each row begins with its filter, 0 for none."""
    rows = b"".join(b"\0" + row.tobytes() for row in RGB)
    content = png_of(6, 4, zlib.compress(rows))
    (tmp_path / "a.png").write_bytes(content)
    for source in (content, tmp_path / "a.png"):
        found = decode_image(source, SHAPE, "refuse")
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, RGB)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_formats_without_loss(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(RGB), form, **options), SHAPE, "refuse"), RGB)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(GREY), np.repeat(GREY[..., None], 3, axis=2)),
        (Image.fromarray(GREY > 99), np.repeat((GREY > 99)[..., None] * np.uint8(255), 3, axis=2)),
        (Image.fromarray(np.dstack([RGB, np.full_like(GREY, 255)])), RGB),
        (Image.fromarray(RGB).quantize(24), RGB),
    ],
    ids=["grey", "bilevel", "opaque alpha", "palette"],
)
def test_what_becomes_rgb_without_loss(image: Image.Image, expected: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(decode_image(encoded(image), SHAPE, "refuse"), expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_what_becomes_grey_without_loss(mode: str) -> None:
    found = decode_image(encoded(Image.fromarray(GREY).convert(mode)), (4, 6, 1), "refuse")
    np.testing.assert_array_equal(found, GREY[..., None])


TRANSPARENT = np.dstack([RGB, np.full_like(GREY, 254)])
FRAMES = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]


@pytest.mark.parametrize(
    ("content", "shape", "words"),
    [
        (encoded(Image.fromarray(TRANSPARENT)), SHAPE, "transparent"),
        (encoded(Image.fromarray(GREY), transparency=int(GREY[0, 0])), SHAPE, "transparent"),
        (encoded(Image.fromarray(RGB)), (4, 6, 1), "colours"),
        (encoded(Image.fromarray(GREY.astype(np.uint16) * 257)), (4, 6, 1), "mode I;16"),
        (encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"), (4, 6, 1), "mode F"),
        (encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG"), SHAPE, "mode CMYK"),
        (encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), SHAPE, "several frames"),
        (b"", SHAPE, "not an image"),
        (b"GIF89a", SHAPE, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\n", SHAPE, "not an image"),
        (encoded(Image.fromarray(RGB)), (6, 4, 3), "4 x 6 pixels, expected 6 x 4"),
    ],
)
def test_what_is_refused(content: bytes, shape: tuple[int, int, int], words: str) -> None:
    assert words in refused(content, shape)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        decode_image(tmp_path / "absent.png", SHAPE, "refuse")


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_no_image(form: str, share: float) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), form)
    assert refused(content[: int(share * len(content))], (40, 60, 3))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(1 << 14, 1 << 13), (1 << 16, 1 << 16), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_not_decoded(width: int, height: int) -> None:
    """A few kilobytes that claim from 134 million pixels on; decoding them would take 400 MB at least."""
    content = png_of(width, height, zlib.compress(bytes(100_000)))
    assert "pixels" in refused(content, resize="stretch")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM"])
def test_damage_is_refused_in_words_or_decoded(form: str) -> None:
    """Bytes overwritten anywhere: never anything but pixels of the right shape or one line."""
    generator = np.random.default_rng(2)
    content = encoded(Image.fromarray(GREY), form)
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(generator.integers(1, 8)):
            damaged[generator.integers(len(damaged))] = generator.integers(256)
        try:
            found = decode_image(bytes(damaged), (4, 6, 1), "refuse")
        except DataError as error:
            outcomes.add("refused" if "\n" not in str(error) else "refused in several lines")
        else:
            assert (found.dtype, found.shape) == (np.uint8, (4, 6, 1))
            outcomes.add("decoded")
    assert outcomes in ({"refused"}, {"refused", "decoded"})


def test_an_image_is_turned_upright() -> None:
    """Orientation 6: the first row of the file is the right-hand column of the picture."""
    exif = Image.Exif()
    exif[274] = 6
    found = decode_image(encoded(Image.fromarray(RGB), exif=exif), (6, 4, 3), "refuse")
    np.testing.assert_array_equal(found, np.rot90(RGB, -1))


def test_stretching_averages_over_what_a_pixel_is_made_of() -> None:
    """The bilinear filter widened to twice the scale: of every other column black, grey remains."""
    stripes = np.tile(np.array([0, 255], np.uint8), (8, 8))
    found = decode_image(encoded(Image.fromarray(stripes)), (2, 4, 1), "stretch")
    assert np.abs(found[:, 1:-1].astype(int) - 127).max() <= 1


def test_cropping_keeps_the_middle() -> None:
    """Twice as wide as high: a quarter is cut on either side, and nothing is scaled where the heights agree."""
    wide = np.arange(32, dtype=np.uint8).reshape(4, 8)
    found = decode_image(encoded(Image.fromarray(wide)), (4, 4, 1), "crop")
    np.testing.assert_array_equal(found[..., 0], wide[:, 2:6])
    high = wide.T.copy()
    found = decode_image(encoded(Image.fromarray(high)), (4, 4, 1), "crop")
    np.testing.assert_array_equal(found[..., 0], high[2:6])


def test_size_alone_decides_whether_anything_is_scaled() -> None:
    for resize in ("refuse", "stretch", "crop"):
        np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(RGB)), SHAPE, resize), RGB)  # type: ignore[arg-type]
