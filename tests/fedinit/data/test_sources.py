"""The sources against trees, zips and CIFAR files that the tests write, and against wrong input."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torchvision.datasets import cifar

import fedinit.data.image_files as image_files
from fedinit.config.build import create
from fedinit.data import SOURCES
from fedinit.data.arrays import resize
from fedinit.data.checking import Misfits, check
from fedinit.data.reporter import Reporter
from fedinit.data.source import Source
from fedinit.errors import InputError

PACS = Path(__file__).resolve().parents[4] / "shared" / "data" / "pacs" / "pacs_cap200.zip"
COLOURS = {"red": (250, 5, 5), "blue": (5, 5, 250)}


def source(root: Path | str | None, name: str = "image_folder", **options: object) -> Source:
    own = {} if name == "digits" else {"root": root and str(root)}
    return create("data", SOURCES, name, own | ({"test_fraction": 0.5} if name == "image_folder" else {}) | options)


def load(root: Path | None, channels: int = 3, size: tuple[int, int] = (8, 8), **changes: object):
    return source(root, **changes).load(channels, size)


def is_test(name: str, fraction: float = 0.5) -> bool:
    """The rule of the split, written the other way: the first 16 hexadecimal digits as a fraction."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 16**16 < fraction


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two domains, two classes of one colour each, six images in every class."""
    root = tmp_path / "tree"
    for domain in ("photo", "art"):
        for name, colour in COLOURS.items():
            folder = root / domain / name
            folder.mkdir(parents=True)
            for i in range(6):
                suffix = ("png", "JPG", "jpeg")[i % 3]
                Image.new("RGB", (10 + i, 12), colour).save(folder / f"{i}.{suffix}")
    return root


def zipped(tree: Path, path: Path, lead: str = "", extra: dict[str, str] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for image in sorted(tree.rglob("*.*")):
            file.write(image, lead + image.relative_to(tree).as_posix())
        for name, text in (extra or {}).items():
            file.writestr(lead + name, text)
    return path


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# The image folder


def test_a_tree_is_read_with_its_names_colours_and_split(tree: Path) -> None:
    made = load(tree)
    assert made.domain_names == ("art", "photo") and made.class_names == ("blue", "red")
    assert made.images.shape == (24, 3, 8, 8) and made.images.is_contiguous()
    names = sorted(p.relative_to(tree).as_posix() for p in tree.rglob("*.*"))
    for row, name in enumerate(names):
        domain, colour, _ = name.split("/")
        assert made.domain_names[made.domains[row]] == domain
        assert made.class_names[made.labels[row]] == colour
        expected = torch.tensor(COLOURS[colour]).reshape(3, 1, 1)
        assert (made.images[row].int() - expected).abs().max() <= 4  # JPEG rounds
        assert made.test[row] == is_test(name)


def test_the_split_of_an_image_stays_when_others_come(tree: Path) -> None:
    before = load(tree)
    Image.new("RGB", (9, 9)).save(tree / "art" / "blue" / "00.png")
    after = load(tree)
    assert after.test.tolist()[1:] == before.test.tolist()
    share = [is_test(f"a/b/{i}.jpg", 0.2) for i in range(2000)]
    assert abs(np.mean(share) - 0.2) < 0.03  # three standard deviations: .027


@pytest.mark.parametrize("lead", ["", "PACS/"])
def test_a_zip_equals_its_folder(tree: Path, tmp_path: Path, lead: str) -> None:
    packed = zipped(tree, tmp_path / "tree.zip", lead, {"readme.txt": "words", "__MACOSX/a/b/._1.jpg": "x"})
    ours, theirs = load(packed), load(tree)
    for field in ("images", "labels", "domains", "test"):
        assert torch.equal(getattr(ours, field), getattr(theirs, field)), field
    assert (ours.class_names, ours.domain_names) == (theirs.class_names, theirs.domain_names)


@pytest.mark.parametrize("lead", ["", "PACS/"])
def test_an_index_sets_the_split(tree: Path, tmp_path: Path, lead: str) -> None:
    names = sorted(p.relative_to(tree).as_posix() for p in tree.rglob("*.*"))
    sides = ["test" if i % 6 == 5 else "train" for i in range(len(names))]
    lines = [f"{n},{n.split('/')[0]},{n.split('/')[1]},0,{s}" for n, s in zip(names, sides, strict=True)]
    index = "\n".join(["path,domain,class,label,split", *lines])
    from_zip = load(zipped(tree, tmp_path / "tree.zip", lead, {"index.csv": index}))
    assert from_zip.test.tolist() == [side == "test" for side in sides]
    (tree / "index.csv").write_text(index)
    assert torch.equal(load(tree).test, from_zip.test)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("path,part\nphoto/red/0.png,train", "expected path and split among them"),
        ("path,split\nphoto/red/0.png,dev", "split='dev' for 'photo/red/0.png'; expected train, val or test"),
        ("path,split\nphoto/red/9.png,test", "'photo/red/9.png', which is not there"),
        ("path,split\nphoto/red/0.png,test", "does not name 'art/blue/0.png'"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tree: Path, index: str, message: str) -> None:
    (tree / "index.csv").write_text(index)
    refused(message, tree)


def test_every_kind_of_picture_becomes_what_it_shows() -> None:
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    deep = Image.fromarray(np.full((16, 16), 40000, dtype=np.uint16))
    palette = red.quantize(4)
    for content, expected in [
        (encoded(red, "PNG"), (255, 0, 0)),
        (encoded(red.convert("CMYK"), "JPEG", quality=95), (255, 0, 0)),
        (encoded(red.convert("L"), "JPEG"), (76, 76, 76)),  # .299 of 255
        (encoded(palette, "PNG"), (255, 0, 0)),
        (encoded(palette, "PNG", transparency=palette.getpixel((0, 0))), (255, 255, 255)),
        (encoded(red.convert("RGBA"), "PNG"), (255, 0, 0)),
        (encoded(clear, "PNG"), (255, 255, 255)),
        (encoded(red.convert("1"), "PNG"), None),  # dithered: black and white
        (encoded(deep, "PNG"), (156, 156, 156)),  # 40000 / 257
        (encoded(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"), (9, 8, 7)),
        (encoded(Image.new("RGB", (1, 300), (9, 8, 7)), "PNG"), (9, 8, 7)),
    ]:
        colour = image_files.decode(content, 3, (8, 6))
        grey = image_files.decode(content, 1, (8, 6))
        assert colour.shape == (3, 8, 6) and grey.shape == (1, 8, 6)
        assert colour.dtype == grey.dtype == np.uint8
        if expected is not None:
            assert np.abs(colour.astype(int) - np.reshape(expected, (3, 1, 1))).max() <= 3
            luma = np.dot(expected, (0.299, 0.587, 0.114))
            assert np.abs(grey.astype(float) - luma).max() <= 3


def test_a_square_is_plainly_resized_and_the_rest_cut_at_the_centre() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    plain = np.asarray(Image.fromarray(noise).resize((8, 8), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.array_equal(image_files.decode(encoded(Image.fromarray(noise), "PNG"), 3, (8, 8)), plain)
    wide = np.random.default_rng(1).integers(64, 192, (20, 60, 3), dtype=np.uint8)
    shorter = np.asarray(Image.fromarray(wide).resize((24, 8), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    ours = image_files.decode(encoded(Image.fromarray(wide), "PNG"), 3, (8, 8))
    assert np.array_equal(ours, shorter[:, :, 8:16])
    tall = Image.fromarray(wide.transpose(1, 0, 2))
    turned = image_files.decode(encoded(tall, "PNG"), 3, (8, 8)).transpose(0, 2, 1)
    assert np.abs(turned.astype(int) - ours).max() <= 1  # it rounds after rows, then columns
    assert not np.array_equal(ours, shorter[:, :, 7:15])


def test_exif_orientation_turns_the_picture() -> None:
    half = Image.new("L", (16, 16), 0)
    half.paste(255, (0, 0, 16, 8))  # bright above
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees clockwise to see it": bright on the right
    turned = image_files.decode(encoded(half, "JPEG", exif=exif), 1, (8, 8))[0].astype(int)
    straight = image_files.decode(encoded(half, "JPEG"), 1, (8, 8))[0].astype(int)
    assert straight[:2].min() > 200 > 50 > straight[-2:].max()
    assert turned[:, -2:].min() > 200 > 50 > turned[:, :2].max()


def test_a_large_jpeg_decoded_at_a_fraction_looks_the_same() -> None:
    wave = 128 + 100 * np.sin(np.arange(256) * 2 * np.pi * 20 / 256)  # 20 periods: 1/8 of the side loses them
    picture = Image.fromarray(wave.round().astype(np.uint8)[None].repeat(256, 0))
    full = np.asarray(picture.resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    ours = image_files.decode(encoded(picture, "JPEG", quality=95), 1, (64, 64))[0]
    assert np.abs(ours - full).mean() < 4 and np.abs(ours - full).max() < 16  # of 255


# The cache


def test_a_cache_hit_equals_a_cold_decode_and_reads_no_image(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = load(tree)
    first = load(tree, cache_dir=str(tmp_path / "cache"))
    monkeypatch.setattr(image_files, "decode", None)  # a call would fail
    second = load(tree, cache_dir=str(tmp_path / "cache"))
    assert torch.equal(cold.images, first.images) and torch.equal(cold.images, second.images)
    kept = list((tmp_path / "cache").iterdir())
    assert [p.suffix for p in kept] == [".images"]
    with pytest.raises(InputError, match="cannot read"):  # the counter-proof: another size is not in the cache
        load(tree, size=(9, 9), cache_dir=str(tmp_path / "cache"))
    monkeypatch.undo()
    load(tree, size=(9, 9), cache_dir=str(tmp_path / "cache"))
    assert len(list((tmp_path / "cache").glob("*.images"))) == 2


@pytest.mark.parametrize("damage", ["empty", "cut", "flip", "text", "header"])
def test_a_damaged_cache_is_rebuilt(tree: Path, tmp_path: Path, damage: str, caplog) -> None:
    cache = tmp_path / "cache"
    expected = load(tree, cache_dir=str(cache)).images
    (file,) = cache.iterdir()
    whole = bytearray(file.read_bytes())
    hurt = {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "flip": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
        "text": b"not a tensor",
        "header": b"\xff" * 8 + whole[8:],
    }[damage]
    file.write_bytes(hurt)
    assert torch.equal(load(tree, cache_dir=str(cache)).images, expected)
    assert "damaged" in caplog.text
    assert file.read_bytes() == whole


def test_a_changed_image_is_not_taken_from_the_cache(tree: Path, tmp_path: Path) -> None:
    before = load(tree, cache_dir=str(tmp_path / "cache")).images
    image = tree / "art" / "blue" / "0.png"
    Image.new("RGB", (10, 12), (0, 255, 0)).save(image)
    os.utime(image, ns=(1, 1))
    after = load(tree, cache_dir=str(tmp_path / "cache")).images
    assert not torch.equal(before[0], after[0]) and torch.equal(before[1:], after[1:])


def test_a_cache_that_cannot_be_written_stops_nothing(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    console = Console(file=io.StringIO(), width=40)
    made = source(tree, cache_dir=str(tmp_path / "file")).load(3, (8, 8), console=console)
    assert torch.equal(made.images, load(tree).images)
    (said,) = console.file.getvalue().splitlines()[2:]  # type: ignore[attr-defined]
    assert said.startswith(f"data: cache {tmp_path}/file cannot be used (")
    assert said.endswith("): the images are held in memory, 4.6 kB")


# Wrong input: one line that says what was wrong and what to do


def refused(message: str, root: Path | None, **changes: object) -> str:
    with pytest.raises(InputError) as caught:
        load(root, **changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_root_that_is_not_there() -> None:
    refused("data.root=", None)
    refused("there is no such folder or zip", Path("nowhere"))


def test_roots_of_another_shape(tree: Path, tmp_path: Path) -> None:
    refused("found class folders and no domain folders ('blue/0.png')", tree / "art")
    refused("is a level too deep", tmp_path)
    (tmp_path / "void").mkdir()
    assert "meant?" not in refused("no images there", tmp_path / "void")
    zipped(tree / "art", tmp_path / "void" / "all.zip")
    assert f"is data.root={tmp_path / 'void' / 'all.zip'} meant?" in refused("no images there", tmp_path / "void")
    (tmp_path / "words.zip").write_text("words")
    refused("neither a folder nor a zip", tmp_path / "words.zip")
    refused("found class folders", zipped(tree / "art", tmp_path / "flat.zip"))
    Image.new("L", (4, 4)).save(tree / "cover.png")
    refused("image 'cover.png' lies at another depth", tree)


@pytest.mark.parametrize("packed", [False, True])
def test_bad_images_are_all_named(tree: Path, tmp_path: Path, packed: bool) -> None:
    whole = (tree / "photo" / "red" / "0.png").read_bytes()
    (tree / "art" / "blue" / "empty.jpg").write_bytes(b"")
    (tree / "art" / "blue" / "text.png").write_bytes(b"a letter, not a picture")
    (tree / "photo" / "red" / "cut.png").write_bytes(whole[: len(whole) // 2])
    root = zipped(tree, tmp_path / "tree.zip") if packed else tree
    for name in ("'art/blue/empty.jpg' (the file is empty)", "'art/blue/text.png'", "'photo/red/cut.png'"):
        refused(name, root)
    refused("replace or delete these files", root)


def test_bad_images_of_a_domain_that_is_not_used_are_not_read(tree: Path) -> None:
    (tree / "art" / "blue" / "empty.jpg").write_bytes(b"")
    assert len(load(tree, domains=("photo",))) == 12
    refused("empty.jpg", tree)


def test_a_damaged_zip_member_is_named(tree: Path, tmp_path: Path) -> None:
    packed = zipped(tree, tmp_path / "tree.zip")
    content = bytearray(packed.read_bytes())
    at = content.index(b"IDAT") + 8
    content[at] ^= 255
    packed.write_bytes(content)
    refused("'art/blue/0.png'", packed)


def test_links_out_of_the_root_are_refused(tree: Path, tmp_path: Path) -> None:
    inside = tree / "art" / "blue" / "again.png"
    inside.symlink_to(tree / "art" / "blue" / "0.png")
    assert len(load(tree)) == 25
    secret = tmp_path / "secret.png"
    Image.new("L", (4, 4)).save(secret)
    for link, target in [("leak.png", secret), ("gone.png", tree / "nothing.png"), ("round.png", "round.png")]:
        path = tree / "art" / "blue" / link
        path.symlink_to(target)
        refused(f"'art/blue/{link}' is a symbolic link that leads out of the root or nowhere", tree)
        path.unlink()
    (tmp_path / "elsewhere").mkdir()
    (tree / "third").symlink_to(tmp_path / "elsewhere")
    refused("'third' is a symbolic link", tree)


def test_a_picture_that_links_put_into_two_places_is_refused(tree: Path) -> None:
    image = tree / "art" / "blue" / "0.png"
    (tree / "photo" / "blue" / "again.png").symlink_to(image)
    refused("'photo/blue/again.png' is the file of 'art/blue/0.png' by a symbolic link", tree)
    assert len(load(tree, domains=("photo",)))  # what is not used is no matter
    (tree / "photo" / "blue" / "again.png").unlink()
    (tree / "art" / "red" / "again.png").symlink_to(image)
    refused("in two classes", tree)
    with pytest.raises(Misfits, match="in two classes"):
        check(source(tree), Reporter(None))
    (tree / "art" / "red" / "again.png").unlink()
    (tree / "art" / "more").symlink_to(tree / "art" / "blue")
    refused("in two classes", tree)
    (tree / "art" / "more").unlink()
    for number in range(30):  # by the hash of its name on either side
        (tree / "art" / "blue" / f"again{number}.png").symlink_to(image)
    refused("in training and test images", tree)


def test_gaps_are_refused(tree: Path, tmp_path: Path) -> None:
    (tree / "sketch").mkdir()
    refused("domain 'sketch' has no images", tree)
    assert len(load(tree, domains=("photo", "art"))) == 24
    (tree / "sketch" / "red").mkdir()
    refused("class folder 'sketch/red' holds no images", tree)
    (tree / "sketch" / "blue").mkdir()
    for colour in COLOURS:
        Image.new("L", (4, 4)).save(tree / "sketch" / colour / "1.png")
    message = "domain 'sketch' has 2 images and none in its test split"
    refused(message, tree, domains=("sketch",), test_fraction=1e-9)
    (tree / "art" / "green").mkdir()
    Image.new("L", (4, 4)).save(tree / "art" / "green" / "1.png")
    refused("class 'green' has no images in photo", tree, domains=("photo",))


# Choosing domains and classes


def test_domains_and_classes_are_numbered_as_asked(tree: Path) -> None:
    everything = load(tree)
    made = load(tree, domains=("photo",), classes=("red", "blue"))
    assert made.domain_names == ("photo",) and made.class_names == ("red", "blue")
    kept = everything.domains == 1
    assert torch.equal(made.images, everything.images[kept])
    assert torch.equal(made.labels, 1 - everything.labels[kept])
    assert torch.equal(made.test, everything.test[kept])


def test_a_site_with_its_own_domain_alone_reads_what_the_whole_has_of_it(tree: Path, tmp_path: Path) -> None:
    """The same images in the same order, under the same numbers, for either domain and for a validation split."""
    for fraction in (None, 0.5):
        names = {"domains": ("photo", "art"), "classes": ("red", "blue"), "validation_fraction": fraction}
        whole = load(tree, **names)
        for d, name in enumerate(names["domains"]):
            alone = tmp_path / f"{name}-{fraction}"
            shutil.copytree(tree / name, alone / name)
            own = source(alone, **names).load(3, (8, 8), domain=name)
            rows = whole.domains == d
            assert own.domain_names == whole.domain_names and own.class_names == whole.class_names
            for column in ("images", "labels", "domains", "test"):
                assert torch.equal(getattr(own, column), getattr(whole, column)[rows]), column
            with pytest.raises(InputError, match="data.domains: no"):
                load(alone, **names)  # the negative control: without `own` all of them are wanted


def test_a_site_may_lack_a_class_that_the_run_names_and_not_its_domain(tree: Path) -> None:
    shutil.rmtree(tree / "photo" / "red")
    shutil.rmtree(tree / "art" / "red")
    asked = source(tree, domains=("photo", "art"), classes=("red", "blue"))
    own = asked.load(3, (8, 8), domain="photo")
    assert own.class_names == ("red", "blue") and own.labels.unique().tolist() == [1]
    shutil.rmtree(tree / "photo")
    with pytest.raises(InputError, match="data.domains: no 'photo' in the source"):
        asked.load(3, (8, 8), domain="photo")


def test_wrong_names_get_a_suggestion(tree: Path) -> None:
    refused("no 'photos' in the source (did you mean 'photo'?)", tree, domains=("photos",))
    refused("no 'bleu' in the source (did you mean 'blue'?)", tree, classes=("red", "bleu"))
    refused("'red' is named 2 times", tree, classes=("red", "red"))
    refused("data.classes=3: the source has only 2 classes", tree, classes=3)
    refused("expected two classes or more", tree, classes=("red",))
    refused("expected one name or more", tree, domains=())
    refused("did you mean 'image_folder'?", tree, name="image_folders")


# Digits


def test_digits_are_grey_in_as_many_channels_as_the_model_has() -> None:
    grey, colour = (load(None, channels, (16, 16), name="digits") for channels in (1, 3))
    assert grey.images.shape[1:] == (1, 16, 16) and colour.images.shape[1:] == (3, 16, 16)
    assert torch.equal(colour.images, grey.images.repeat(1, 3, 1, 1))
    few = load(None, 1, (16, 16), name="digits", classes=3, domains=("rotated", "plain"))
    assert few.class_names == ("0", "1", "2") and few.domain_names == ("rotated", "plain")
    assert set(few.labels.tolist()) == {0, 1, 2} and few.domains.bincount(minlength=2).min() > 0


def test_digits_refuse_a_size_they_cannot_be_drawn_at() -> None:
    for size in [(30, 30), (32, 16), (8, 8)]:
        with pytest.raises(InputError, match="model.image_size"):
            load(None, 1, size, name="digits")
    with pytest.raises(InputError, match="4 channels"):
        load(None, 4, (16, 16), name="digits")


# CIFAR


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar_files(request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Files in the published format with four images each: (name, root, pixels of all in order, labels)."""
    kind = {"cifar10": cifar.CIFAR10, "cifar100": cifar.CIFAR100}[request.param]
    key = {"cifar10": "labels", "cifar100": "fine_labels"}[request.param]
    num_classes = {"cifar10": 10, "cifar100": 100}[request.param]
    rng, pixels, labels = np.random.default_rng(3), [], []
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    digests = {}

    def write(name: str, content: object) -> None:
        (folder / name).write_bytes(pickle.dumps(content))
        digests[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()

    for name, _ in kind.train_list + kind.test_list:
        pixels.append(rng.integers(0, 256, (4, 3072), dtype=np.uint8))
        labels.append(rng.integers(0, num_classes, 4).tolist())
        write(name, {"data": pixels[-1], key: labels[-1]})
    write(kind.meta["filename"], {kind.meta["key"]: [f"c{i:03}" for i in range(num_classes)]})
    # torchvision's own check stays on, with the sums of these files in place of the published ones.
    for listing in ("train_list", "test_list"):
        monkeypatch.setattr(kind, listing, [[name, digests[name]] for name, _ in getattr(kind, listing)])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": digests[kind.meta["filename"]]})
    images = torch.from_numpy(np.concatenate(pixels).reshape(-1, 3, 32, 32))
    return request.param, tmp_path, images, torch.tensor(sum(labels, []))


def test_cifar_is_one_domain_with_the_published_split(cifar_files) -> None:
    name, root, images, labels = cifar_files
    present = sorted(set(labels.tolist()))
    made = load(root, 3, (32, 32), name=name, classes=tuple(f"c{i:03}" for i in present))
    assert made.domain_names == ("all",)
    assert torch.equal(made.images, images)  # at 32 px byte for byte
    assert [present[label] for label in made.labels] == labels.tolist()
    assert made.test.tolist() == [False] * (len(images) - 4) + [True] * 4
    larger = load(root, 1, (48, 40), name=name, classes=made.class_names)
    assert larger.images.shape == (len(images), 1, 48, 40)


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_cifar_that_is_missing_or_changed_says_how_to_get_it(cifar_files) -> None:
    name, root, _, _ = cifar_files
    call = f"{name.upper()}({str(root / 'void')!r}, download=True)"
    refused(call, root / "void", name=name)
    refused("data.root is not set", None, name=name)
    changed = next(root.glob("*/*test*"))
    changed.write_bytes(changed.read_bytes() + b"x")
    refused(f"no whole {name.upper()} there", root, name=name)
    changed.write_bytes(pickle.dumps(Planted(root / "run")))
    refused(f"no whole {name.upper()} there", root, name=name)
    assert not (root / "run").exists()
    pickle.loads(changed.read_bytes())  # the control
    assert (root / "run").exists()


def test_resize_is_pillows_bicubic_to_a_level() -> None:
    # Pillow clips and rounds between its two passes: half the contrast leaves nothing to clip.
    image = np.random.default_rng(0).integers(64, 192, (32, 32, 3), dtype=np.uint8)
    for side in (16, 24, 64):
        theirs = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
        ours = resize(torch.from_numpy(image).permute(2, 0, 1)[None], 3, (side, side))[0].permute(1, 2, 0)
        assert np.abs(ours.numpy().astype(int) - theirs).max() <= 1
    grey = resize(torch.from_numpy(image).permute(2, 0, 1)[None], 1, (32, 32))[0, 0]
    assert np.abs(grey.numpy().astype(int) - np.asarray(Image.fromarray(image).convert("L"))).max() <= 1


# The config files and the real set


@pytest.mark.skipif(not PACS.exists(), reason="needs ../shared/data/pacs/pacs_cap200.zip")
def test_pacs_from_its_zip() -> None:
    made = load(PACS, 3, (16, 16), domains=("sketch", "photo"), classes=2)
    assert made.domain_names == ("sketch", "photo") and made.class_names == ("dog", "elephant")
    with zipfile.ZipFile(PACS) as file:
        rows = [line.split(",") for line in file.read("PACS/index.csv").decode().split()[1:]]
    listed = sorted(r for r in rows if r[1] in made.domain_names and r[2] in made.class_names)
    assert made.test.tolist() == [split == "test" for *_, split in listed]
    assert [made.class_names[label] for label in made.labels] == [r[2] for r in listed]
    assert made.images.float().std() > 30  # pictures, not blanks
