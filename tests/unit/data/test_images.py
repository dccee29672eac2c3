import hashlib
import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from sklearn.datasets import load_sample_images

from training.data.images.decode import ImageError, decode_pixels, load
from training.data.images.resize import prepare_image

PHOTOS = load_sample_images().images


def encode(image, format="PNG", **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def one(data, size, mode="area", **options):
    (image,) = prepare_image(data, [size], mode, **options).images
    assert image.dtype == np.uint8
    assert image.shape == (size, size, options.get("channels", 3))
    return image


def area_oracle(square, size):
    """The average over each output pixel's area, fractions of pixels at its edges weighted, in float64."""
    side = square.shape[0]
    edges = np.arange(size + 1) * side / size
    pixels = np.arange(side)
    cover = np.clip(np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels), 0, 1) * size / side
    return np.einsum("yh,hwc->ywc", cover, np.einsum("xw,hwc->hxc", cover, square.astype(np.float64), optimize=True), optimize=True)


def ramp(width, height, channels=3):
    """Synthetic image of reference conventions 5.4."""
    y, x = np.mgrid[:height, :width]
    parts = (x * 7 + y * 3, x * x // 17 + y * 5, ((x // 9 + y // 11) % 2) * 200 + 20)
    return np.stack([part % 256 for part in parts[:channels]], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("size", [32, 64, 127, 256])
@pytest.mark.parametrize("shape", [(427, 640), (640, 427), (300, 300), (256, 257), (427, 431)])
@pytest.mark.parametrize("photo", [0, 1])
def test_area_is_within_half_a_level_of_the_exact_average(photo, shape, size):
    source = PHOTOS[photo]
    image = np.tile(source, (2, 2, 1))[: shape[0], : shape[1]]
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    exact = area_oracle(image[top : top + side, left : left + side], size)
    error = one(encode(image), size).astype(np.float64) - exact
    assert np.abs(error).max() <= 0.5 + 1e-3
    assert abs(error.mean()) < 0.06  # a half level is what truncation or Pillow's halvings would show


def test_area_of_an_image_that_has_the_size_changes_nothing():
    image = ramp(64, 64)
    assert np.array_equal(one(encode(image), 64), image)


@pytest.mark.parametrize("mode", ["adm", "area", "lanczos", "none"])
def test_every_mode_but_the_squash_passes_an_image_of_the_size_unchanged(mode):
    image = ramp(64, 64)
    assert np.array_equal(one(encode(image), 64, mode), image)


@pytest.mark.parametrize(
    ("width", "height", "digest"),
    [
        (500, 375, "4b2a9ce52ac0"),
        (375, 500, "af51ccb643c5"),
        (64, 64, "931b790bc940"),
        (128, 128, "e827e9dccbfc"),
        (127, 127, "494d8a60042c"),
        (129, 200, "7f0a778bc36d"),
        (40, 30, "b44574122a12"),
        (257, 256, "d24cd76e20bc"),
        (256, 256, "37d4f6f94be4"),
        (1000, 65, "74fa5fb12b1e"),
    ],
)
def test_adm_is_the_released_loader_bit_for_bit(width, height, digest):
    image = one(encode(ramp(width, height)), 64, "adm", allow_upscale=True)
    assert hashlib.sha256(image.transpose(2, 0, 1).tobytes()).hexdigest()[:12] == digest


def test_adm_resizes_before_it_converts_a_palette_as_the_released_loader_does():
    palette = Image.fromarray(ramp(200, 129)).quantize(16)
    after = palette.resize((round(200 * 64 / 129), 64), Image.Resampling.BICUBIC).convert("RGB")
    halved = palette.resize((100, 64), Image.Resampling.BOX)
    assert min(halved.size) == 64
    after = halved.resize((100, 64), Image.Resampling.BICUBIC).convert("RGB").crop((18, 0, 82, 64))
    assert np.array_equal(one(encode(palette), 64, "adm"), np.asarray(after))


@pytest.mark.parametrize("shape", [(1, 100), (100, 1)])
def test_a_narrow_image_that_adm_would_enlarge_beyond_the_limit_is_refused(shape):
    data = encode(np.zeros((*shape, 3), dtype=np.uint8))
    options = {"allow_upscale": True, "max_pixels": 8 * 800}
    assert one(data, 8, "adm", **options).shape == (8, 8, 3)
    with pytest.raises(ImageError, match=r"which 'adm' would enlarge to over 6,400 pixels; crop it, or take resize 'area'"):
        one(data, 9, "adm", **options)
    assert one(data, 9, "area", **options).shape == (9, 9, 3), "it crops first"


def test_adm_brightens_and_area_does_not():
    # Field note: Pillow rounds half up, half a level for each box halving.
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    adm, exact = one(encode(noise), 64, "adm"), one(encode(noise), 64)
    assert 1.5 < adm.mean() - noise.mean() < 2.5
    assert abs(exact.mean() - noise.mean()) < 0.05


def test_box_squash_takes_the_whole_image_and_loses_its_aspect():
    image = np.zeros((64, 256, 3), dtype=np.uint8)
    image[:, :64] = 255  # the left quarter, which a centre crop would cut off
    squashed = one(encode(image), 32, "box-squash")
    assert (squashed[:, :8] == 255).all()
    assert (squashed[:, 8:] == 0).all()


def test_lanczos_is_pillows_on_the_centre_square():
    photo = PHOTOS[0]
    square = Image.fromarray(photo).crop((106, 0, 533, 427))
    assert np.array_equal(one(encode(photo), 64, "lanczos"), np.asarray(square.resize((64, 64), Image.Resampling.LANCZOS)))


def test_several_sizes_come_from_one_decode_and_equal_the_single_ones():
    data = encode(PHOTOS[0])
    prepared = prepare_image(data, [32, 64, 128], "area")
    for size, image in zip([32, 64, 128], prepared.images, strict=True):
        assert np.array_equal(image, one(data, size))


@pytest.mark.parametrize("mode", ["area", "lanczos", "box-squash", "adm"])
def test_an_image_that_is_too_small_is_refused_unless_allowed(mode):
    data = encode(ramp(40, 30))
    with pytest.raises(ImageError, match="is 40x30, smaller than 64"):
        prepare_image(data, [64], mode)
    assert prepare_image(data, [64, 16], mode, allow_upscale=True).upscaled == (True, False)


def test_no_resize_means_exactly_the_size():
    with pytest.raises(ImageError, match=r"is 65x64, but resize 'none' needs exactly 64x64"):
        prepare_image(encode(ramp(65, 64)), [64], "none")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    upright = Image.fromarray(ramp(96, 64))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(one(encode(stored, exif=exif), 64), one(encode(upright), 64))


def test_a_palette_is_expanded_before_it_is_averaged():
    palette = Image.fromarray(ramp(128, 128)).quantize(32)
    assert np.array_equal(one(encode(palette), 64), one(encode(palette.convert("RGB")), 64))


def test_alpha_is_laid_over_white():
    image = np.zeros((64, 64, 4), dtype=np.uint8)
    image[:32] = (10, 20, 30, 255)
    image[32:] = (10, 20, 30, 0)
    prepared = one(encode(image), 32)
    assert (prepared[:16] == (10, 20, 30)).all()
    assert (prepared[16:] == 255).all()


@pytest.mark.parametrize(("background", "level"), [("white", 255), ("grey", 128), ("black", 0)])
def test_the_background_of_transparent_pixels_is_an_option(background, level):
    image = np.zeros((64, 64, 4), dtype=np.uint8)
    image[:32] = (10, 20, 30, 255)
    prepared = one(encode(image), 32, background=background)
    assert (prepared[:16] == (10, 20, 30)).all()
    assert (prepared[16:] == level).all()


def test_a_transparent_palette_entry_is_white():
    image = Image.fromarray(np.zeros((32, 32), dtype=np.uint8), "L").convert("P")
    assert (one(encode(image, transparency=0), 32) == 255).all()


def png_of_depth(pixels, depth, colour):
    """A PNG of grey or RGB pixels of 2, 4 or 16 bits, in which one colour is transparent."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    if depth == 16:
        packed = [row.astype(">u2").tobytes() for row in rows]
    else:
        bits = np.unpackbits(rows[..., None].astype(np.uint8), axis=-1)[..., -depth:]
        packed = [np.packbits(row).tobytes() for row in bits.reshape(height, -1)]
    header = struct.pack(">IIBBBBB", width, height, depth, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    key = struct.pack(f">{len(colour)}H", *colour)
    data = chunk(b"IHDR", header) + chunk(b"tRNS", key) + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in packed)))
    return b"\x89PNG\r\n\x1a\n" + data + chunk(b"IEND", b"")


@pytest.mark.parametrize(("depth", "channels"), [(2, 1), (4, 1), (16, 1), (16, 3)])
def test_the_transparent_colour_of_a_png_is_one_of_its_own_depth(depth, channels):
    levels = np.random.default_rng(depth).integers(0, 2**depth, (8, 8, channels))
    key = {2: 1, 4: 5, 16: 30_000}[depth]
    levels[0], levels[1] = key, 0
    pixels = levels if channels == 3 else levels[..., 0]
    data = png_of_depth(pixels, depth, [key] * channels)
    expected = levels * 255 // (2**depth - 1) if depth < 8 else levels >> 8
    expected[(levels == key).all(axis=-1)] = 255
    for wanted in (1, 3):
        image = one(data, 8, "area", channels=wanted)
        if wanted >= channels:
            assert np.array_equal(image, np.broadcast_to(expected, (8, 8, wanted)))
        assert (image[0] == 255).all()


def test_a_tiff_of_sixteen_bits_whose_zero_is_white_is_not_taken_for_a_negative():
    levels = np.random.default_rng(0).integers(0, 65536, (8, 8)).astype(np.uint16)
    photometric = 262
    for zero_is_white, expected in ((False, levels >> 8), (True, 255 - (levels >> 8))):
        data = encode(levels, "TIFF", tiffinfo={photometric: 0 if zero_is_white else 1})
        for mode in ("area", "adm"):
            assert np.array_equal(one(data, 8, mode, channels=1)[..., 0], expected)


def grey_tiff(levels, bits, photometric):
    """A little-endian TIFF of one strip, with `bits` for each pixel."""
    height, width = levels.shape
    planes = np.unpackbits(levels.astype(">u2").view(np.uint8).reshape(height, width, 2), axis=2)[..., 16 - bits :]
    strip = np.packbits(planes.reshape(height, -1), axis=1).tobytes()
    numbers = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: height, 279: len(strip)}
    numbers[273] = 8 + 2 + 12 * len(numbers) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, number) for tag, number in numbers.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(numbers)) + entries + bytes(4) + strip


@pytest.mark.parametrize("mode", ["area", "adm"])
def test_a_tiff_of_twelve_bits_is_not_almost_black(mode):
    levels = np.random.default_rng(0).integers(0, 4096, (8, 8))
    levels[0, :3] = 0, 15, 4095
    assert np.array_equal(one(grey_tiff(levels, 12, 1), 8, mode, channels=1)[..., 0], levels >> 4)
    white = Image.open(io.BytesIO(grey_tiff(np.full((8, 8), 4095), 12, 1)))
    assert (np.asarray(load(white)) == 65535).all()


def test_a_tiff_of_twelve_bits_whose_zero_is_white_is_refused():
    levels = np.zeros((8, 8), dtype=np.int64)
    with pytest.raises(ImageError, match=r"has a header that can't be read: .* of a kind that is not known; save it again as an 8-bit PNG"):
        one(grey_tiff(levels, 12, 0), 8, channels=1)


def test_cmyk_becomes_rgb():
    red = Image.new("RGB", (64, 64), (255, 0, 0)).convert("CMYK")
    prepared = one(encode(red, "JPEG", quality=95), 32)
    assert np.abs(prepared.astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("mode", ["area", "adm"])
def test_lab_becomes_grey_by_way_of_rgb(mode):
    photo = Image.fromarray(PHOTOS[0][:200, :200])
    lab = ImageCms.profileToProfile(photo, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB")
    grey = one(encode(photo.convert("L"), "TIFF"), 64, mode, channels=1).astype(int)
    assert np.abs(one(encode(lab, "TIFF"), 64, mode, channels=1) - grey).mean() < 2


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_that_a_tiff_multiplied_by_its_alpha_is_laid_over_white(channels):
    """Pillow's mode "La". Grey g under alpha a is stored as g * a, and over white it is g * a + 255 - a."""
    alpha, stored = 128, np.arange(64, dtype=np.uint8).reshape(8, 8)
    image = np.dstack([stored, np.full((8, 8), alpha, dtype=np.uint8)])
    extra_samples = [struct.pack("<HHII", 338, 3, 1, kind) for kind in (2, 1)]
    data = encode(Image.fromarray(image, "LA"), "TIFF").replace(*extra_samples)
    assert Image.open(io.BytesIO(data)).mode == "La"
    # Pillow rounds the grey down, by half a level in the mixture at this alpha, and the mixture by half a level.
    assert np.abs(one(data, 8, channels=channels).astype(int) - (stored[..., None] + 255.0 - alpha)).max() <= 1
    grey = one(data, 8, "adm", channels=channels)
    assert np.abs(grey - stored[..., None] * (255.0 / alpha)).max() <= 1


@pytest.mark.parametrize("mode", ["area", "adm"])
def test_pixels_that_pillow_can_not_convert_are_a_reason_to_refuse_that_image(monkeypatch, mode):
    def fail(image, mode):
        raise ValueError("conversion not supported")

    data = encode(Image.fromarray(ramp(64, 64)).convert("RGBA"))
    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(ImageError, match=r"has 'RGBA' pixels, which can't be converted .*conversion not supported"):
        prepare_image(data, [64], mode)


def test_sixteen_bits_keep_their_high_byte():
    levels = np.arange(256, dtype=np.uint16).repeat(16).reshape(64, 64)
    grey = Image.fromarray(levels * 257)
    assert np.array_equal(one(encode(grey), 64, channels=1)[..., 0], levels)
    assert np.array_equal(one(encode(grey), 64)[..., 2], levels)
    assert np.array_equal(one(encode(grey, "TIFF"), 64, channels=1)[..., 0], levels)
    big_endian = encode(Image.fromarray((levels * 257).astype(">u2")), "TIFF")
    assert np.array_equal(one(big_endian, 64, channels=1)[..., 0], levels)
    assert np.abs(one(big_endian, 32, "adm").astype(int) - one(encode(grey, "TIFF"), 32, "adm")).max() <= 1


@pytest.mark.parametrize("mode", ["area", "adm"])
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_whose_white_is_not_known_are_refused(dtype, mode):
    with pytest.raises(ImageError, match="whose white is not known"):
        prepare_image(encode(Image.fromarray(np.full((64, 64), 200, dtype=dtype)), "TIFF"), [64], mode)


def test_grey_is_repeated_for_colour_and_colour_weighted_for_grey():
    grey = ramp(64, 64)[..., 0]
    assert np.array_equal(one(encode(grey), 64), np.repeat(grey[..., None], 3, axis=2))
    colour = ramp(64, 64)
    luma = colour @ np.array([0.299, 0.587, 0.114])
    assert np.abs(one(encode(colour), 64, channels=1)[..., 0] - luma).max() <= 1


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_is_decoded(format):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], **({"lossless": True} if format == "WEBP" else {}))
    assert (one(data, 32) == (200, 0, 0)).all()


def test_arrays_are_prepared_like_files():
    image = ramp(200, 129)
    for mode in ("area", "adm", "box-squash", "lanczos"):
        for channels in (1, 3):
            assert np.array_equal(one(image, 64, mode, channels=channels), one(encode(image), 64, mode, channels=channels))
    grey = ramp(64, 64, 1)
    assert np.array_equal(one(grey, 64, "none"), np.repeat(grey, 3, axis=2))


def bomb(width, height):
    """A small PNG that claims to be huge, and is."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * ((width // 8 + 1) * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 50_000])
def test_a_decompression_bomb_is_refused_from_its_header(side):
    with pytest.raises(ImageError, match="too large"):
        prepare_image(bomb(side, side), [64], "area")


def test_the_limit_is_ours_to_set_whatever_pillows_is(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # which refuses more than twice as many
    for mode in ("area", "adm"):
        assert prepare_image(encode(PHOTOS[0]), [64], mode).images[0].shape == (64, 64, 3)
    height, width = PHOTOS[0].shape[:2]
    assert prepare_image(encode(PHOTOS[0]), [64], "area", max_pixels=width * height)
    with pytest.raises(ImageError, match=rf"is too large: {width}x{height} is over .*raise max_pixels"):
        prepare_image(encode(PHOTOS[0]), [64], "area", max_pixels=width * height - 1)
    assert Image.MAX_IMAGE_PIXELS == 10_000


def test_an_image_over_the_limit_of_opencv_is_decoded_by_pillow():
    program = (
        "import hashlib, sys\nfrom training.data.images.decode import decode_pixels\n"
        "print(hashlib.sha256(decode_pixels(sys.stdin.buffer.read(), 3).tobytes()).hexdigest())"
    )
    data = encode(PHOTOS[0], "JPEG")
    limited = os.environ | {"OPENCV_IO_MAX_IMAGE_PIXELS": "1000"}  # read once, as the library is loaded
    done = subprocess.run([sys.executable, "-c", program], input=data, env=limited, capture_output=True, check=True)
    assert done.stdout.decode().strip() == hashlib.sha256(decode_pixels(data, 3).tobytes()).hexdigest()


def test_a_jpeg_decoded_the_fast_way_has_pillows_pixels():
    for options in ({}, {"progressive": True}, {"subsampling": 0}, {"quality": 30, "restart_marker_rows": 1}):
        data = encode(PHOTOS[0][:427, :427], "JPEG", **options)
        assert np.array_equal(one(data, 427), np.asarray(Image.open(io.BytesIO(data))))


def test_a_broken_file_is_refused_with_the_reason():
    jpeg = encode(PHOTOS[0], "JPEG")
    png = encode(PHOTOS[0])
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 255
    for data, reason in (
        (b"", "is empty"),
        (b"hello, I am a text named .png\n", "is not an image of a known format"),
        (jpeg[: len(jpeg) // 2], "is damaged or truncated"),
        (jpeg[:-1000], "is damaged or truncated"),
        (png[: len(png) // 2], "is damaged or truncated"),
        (bytes(flipped), "is damaged or truncated"),
        (jpeg[:100], "has a header that can't be read .*: it is damaged"),
        (png[:16] + bytes(4) + png[20:], "has a header that can't be read: it is damaged"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "is not an image of a known format"),
    ):
        with pytest.raises(ImageError, match=reason):
            prepare_image(data, [64], "area")


DAMAGES = [OSError, SyntaxError, ValueError, OverflowError, EOFError, KeyError, IndexError, TypeError, struct.error, zlib.error]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("place", ["PIL.Image.open", "PIL.PngImagePlugin.PngImageFile.load"])
def test_whatever_pillow_raises_about_a_damaged_file_is_a_reason_to_refuse_that_image(monkeypatch, damage, place):
    data = encode(PHOTOS[0])

    def fail(*arguments, **options):
        raise damage("bad")

    monkeypatch.setattr(place, fail)
    with pytest.raises(ImageError, match=r"has a header that can't be read \('?bad'?\)|is damaged or truncated"):
        prepare_image(data, [64], "area")


def test_a_reduced_decode_stays_within_its_stated_error():
    for photo in PHOTOS:
        data = encode(Image.fromarray(photo).resize((1000, 750), Image.Resampling.LANCZOS), "JPEG", quality=92)
        exact = one(data, 64).astype(float)
        reduced = one(data, 64, reduced_decode=True).astype(float)
        assert np.abs(reduced - exact).mean() <= 2.2
    small = encode(ramp(70, 70), "JPEG")
    assert np.array_equal(one(small, 64, reduced_decode=True), one(small, 64))
