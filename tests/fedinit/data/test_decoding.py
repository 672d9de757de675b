"""What Pillow reads is read, deep grey keeps its levels, and EXIF does not decide whether a picture can be read."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, ImageCms, ImageOps, features
from rich.console import Console

from fedinit.cli import main
from fedinit.config.build import create
from fedinit.data import SOURCES
from fedinit.data.decoding import decode, suffixes
from fedinit.errors import InputError
from tests.support.trees import load_folder, plant

KINDS = ["jpg", "jpeg", "jfif", "png", "webp", "bmp", "dib", "tif", "tiff", "gif", "ppm", "tga", "pcx", "ico", "sgi"]
KINDS += ["jp2"] * features.check("jpg_2000") + ["avif"] * features.check("avif")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_that_pillow_reads_is_an_image(tmp_path: Path, kind: str) -> None:
    for name, colour in (("cat", (240, 10, 10)), ("dog", (10, 10, 240))):
        (tmp_path / "art" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (16, 16), colour).save(tmp_path / "art" / name / f"{i}.{kind.upper() if i else kind}")
    data = load_folder(tmp_path, test_fraction=0.5)
    assert len(data) == 8
    for image, label in zip(data.images, data.labels, strict=True):
        assert abs(int(image[0].float().mean()) - (10 if label else 240)) < 12


def test_what_is_run_or_is_no_picture_is_passed_over() -> None:
    assert not {".eps", ".ps", ".pdf", ".h5", ".mpg", ".pcd", ".txt", ".npy"} & set(suffixes())


def test_of_a_moving_picture_the_first_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), (200 * i, 0, 0)) for i in range(2)]
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert decode(content, 3, (8, 8)).max() < 8, kind


def test_the_start_says_what_there_is_and_what_was_passed_over(tmp_path: Path) -> None:
    root = plant(tmp_path, "art/cat", "art/dog", "photo/cat", "photo/dog", count=8)
    plant(root, "art/cat", files={"notes.txt": "", "art/cat/a.heic": "", "photo/b.HEIC": "", "photo/c.heic": ""})
    console = Console(file=io.StringIO(), width=30)
    create("data", SOURCES, "image_folder", {"root": str(root)}).load(3, (4, 4), console=console)
    assert console.file.getvalue() == (  # type: ignore[attr-defined]
        "data: 32 images, 2 classes, 2 domains; 4 files passed over: 3 .heic (art/cat/a.heic, photo/b.HEIC, …), 1 .txt "
        "(notes.txt)\ndata: no test images: evaluated on 20% of all, by name\n"
    )


# Grey of more than 8 bits


def ramp(top: int) -> Image.Image:
    """64 by 64 pixels whose levels run evenly from 0 to `top`."""
    return Image.fromarray(np.linspace(0, top, 4096).round().reshape(64, 64).astype(np.uint16))


def grey_tree(root: Path, kind: str = "png") -> Path:
    for domain, top in (("art", 4095), ("photo", 2047)):
        for name in ("cat", "dog"):
            (root / domain / name).mkdir(parents=True)
            for i in range(8):
                ramp(top).save(root / domain / name / f"{i}.{kind}")
    return root


def shades(root: Path, **options: object) -> list[int]:
    """The number of levels of each domain's first image."""
    made = create("data", SOURCES, "image_folder", {"root": str(root), **options}).load(1, (64, 64))
    return [len(made.images[made.domains == d][0].unique()) for d in made.domains.unique()]


@pytest.mark.parametrize("kind", ["png", "tif", "jp2"])
def test_twelve_bits_in_sixteen_use_all_levels(tmp_path: Path, kind: str) -> None:
    root = grey_tree(tmp_path, kind)
    assert shades(root) == [256, 128]  # of the source, not of each image
    assert shades(root, grey_range=(0.0, 4095.0)) == [256, 128]
    assert shades(root, grey_range="full") == [17, 9]  # what there was
    assert shades(root, grey_range=(0.0, 2047.0)) == [256, 256]


def test_the_range_does_not_depend_on_the_classes_that_are_chosen(tmp_path: Path) -> None:
    root = grey_tree(tmp_path)
    Image.fromarray(np.full((64, 64), 8190, dtype=np.uint16)).save(root / "art" / "eel.png")
    (root / "art" / "eel").mkdir()
    (root / "art" / "eel.png").rename(root / "art" / "eel" / "0.png")
    assert shades(root, classes=("cat", "dog")) == shades(root, classes=("cat", "dog"), grey_range=(0.0, 8190.0))


def test_sixteen_bits_under_anothers_name_are_told_where_other_files_have_levels(tmp_path: Path) -> None:
    """They were clipped to these levels, which nobody had measured them for."""
    root = grey_tree(tmp_path)
    ramp(60000).save(root / "art" / "cat" / "9.png")
    (root / "art" / "cat" / "9.png").rename(root / "art" / "cat" / "9.jpg")
    with pytest.raises(InputError, match="cannot read 'art/cat/9.jpg' .*or name a file by its own ending"):
        shades(root)
    assert shades(root, skip_unreadable=True) == shades(root, grey_range=(0.0, 4095.0)) == [256, 128]


def test_floating_point_pictures_are_shown_whole() -> None:
    levels = np.linspace(-2, 3, 256, dtype=np.float32).reshape(16, 16)
    levels[0, 0] = np.nan
    content = encoded(Image.fromarray(levels), "TIFF")
    assert len(np.unique(decode(content, 1, (16, 16), (-2.0, 3.0)))) == 256
    assert decode(content, 1, (16, 16)).max() == 255


@pytest.mark.parametrize("level", [np.nan, np.inf])
def test_a_picture_without_a_finite_number_is_none_for_a_run_and_for_a_check(
    tmp_path: Path, level: float, capsys
) -> None:
    root = plant(tmp_path / "tree", "art/cat", "art/dog", count=4)
    Image.fromarray(np.full((4, 4), level, np.float32)).save(root / "art" / "cat" / "empty.tif")
    with pytest.raises(InputError, match="empty.tif.*none of its pixels is a finite number"):
        load_folder(root)
    assert main(["data", "check", str(root)]) == 1
    assert "none of its pixels is a finite number" in capsys.readouterr().out


def test_whole_and_floating_point_numbers_have_windows_of_their_own(tmp_path: Path) -> None:
    root = grey_tree(tmp_path)
    for name in ("cat", "dog"):
        (root / "sketch" / name).mkdir(parents=True)
        for i in range(8):
            levels = np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)
            Image.fromarray(levels).save(root / "sketch" / name / f"{i}.tif")
    assert shades(root) == [256, 128, 256]
    assert shades(root, grey_range=(0.0, 4095.0)) == [256, 128, 1]  # as was asked for: float levels up to 1 are black


def test_what_is_no_picture_is_told_alike_at_every_start(tmp_path: Path) -> None:
    root = plant(tmp_path / "tree", "art/cat", "art/dog", count=8)
    for i in range(4):
        (root / "art" / "cat" / f"{i}.png").write_bytes(b"no picture")
    cache = str(tmp_path / "cache")
    messages = []
    for _ in range(2):
        with pytest.raises(InputError, match=r"cannot identify image file\)") as caught:
            load_folder(root, cache_dir=cache)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "0x" not in messages[0]
    assert len(list((tmp_path / "cache").glob("unreadable-*.txt"))) == 1


def test_a_range_that_is_none_is_refused() -> None:
    for given, said in [((5.0, 5.0), "[5,5]"), ((9.0, 1.0), "[9,1]"), ((0.0, float("nan")), "[0,nan]")]:
        with pytest.raises(InputError, match="expected .low,high., two numbers") as caught:
            create("data", SOURCES, "image_folder", {"grey_range": given})
        assert f"data.grey_range={said}" in str(caught.value)
    with pytest.raises(InputError, match="data.grey_range=wide: no such choice"):
        create("data", SOURCES, "image_folder", {"grey_range": "wide"})


# EXIF


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_exif_that_cannot_be_read_leaves_the_picture_as_it_is() -> None:
    picture = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    plain = decode(encoded(picture, "JPEG"), 1, (16, 16))
    broken = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x12\x01\x03\x00\x01\x00"
    for exif in (broken, b"Exif\x00\x00nonsense", b"Exif\x00\x00"):
        assert np.array_equal(decode(encoded(picture, "JPEG", exif=exif), 1, (16, 16)), plain)


def test_exif_that_cannot_be_written_again_still_turns_the_picture() -> None:
    """A resolution unit of 70,000: Pillow reads it, and cannot write it as the 16 bits that the unit has."""
    half = Image.new("L", (16, 16), 0)
    half.paste(255, (0, 0, 16, 8))
    tags = [struct.pack("<HHIHH", 0x112, 3, 1, 6, 0), struct.pack("<HHII", 0x128, 4, 1, 70000)]
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00" + struct.pack("<H", len(tags)) + b"".join(tags) + bytes(4)
    content = encoded(half, "JPEG", exif=exif)
    turned = decode(content, 1, (16, 16))[0]
    assert turned[:, -4:].min() > 200 > 50 > turned[:, :4].max()
    with pytest.raises(struct.error):  # the negative control: the way that writes it
        ImageOps.exif_transpose(Image.open(io.BytesIO(content)))


def test_a_tiff_is_turned_once() -> None:
    half = Image.new("L", (16, 16), 0)
    half.paste(255, (0, 0, 16, 8))
    turned = decode(encoded(half, "TIFF", tiffinfo={274: 6}), 1, (16, 16))[0]
    assert turned[:, -4:].min() > 200 > 50 > turned[:, :4].max()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"])
def test_a_tiff_of_any_mode_shows_its_colour(mode: str) -> None:
    """Of those in which a TIFF can be, LAB is one that Pillow does not convert itself."""
    colour = Image.new("RGB", (8, 8), (200, 30, 60))
    if mode == "LAB":
        profiles = (ImageCms.createProfile(name) for name in ("sRGB", "LAB"))
        image = ImageCms.profileToProfile(colour, *profiles, outputMode="LAB")
    else:
        palette = {"palette": Image.Palette.ADAPTIVE} if mode[0] == "P" else {}
        image = colour.convert(mode[:1] if palette else mode, **palette).convert(mode)
    stored = io.BytesIO()
    image.save(stored, "TIFF")
    try:
        Image.open(stored).load()
    except OSError as error:
        pytest.skip(f"Pillow {PIL.__version__} does not read its own TIFF in {mode}: {error}")
    expected = {"1": None, "L": (84, 84, 84), "LA": (84, 84, 84)}.get(mode, (200, 30, 60))
    pixel = decode(stored.getvalue(), 3, (8, 8))[:, 4, 4].astype(int)
    if expected is None:
        assert set(pixel) <= {0, 255} and len(set(pixel)) == 1
    else:
        assert abs(pixel - expected).max() <= 4
