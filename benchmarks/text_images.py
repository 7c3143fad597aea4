"""Render text as images: lines for recognition, crops for orientation, pages for detection.

    python benchmarks/text_images.py --output build/text_images

This writes `lines.npy`, `crops.npy` and `pages.npy`, images without labels as the PaddleOCR
networks expect them, (N, 3, H, W) in float32, for `lowrank compress --samples`. Other benchmarks
import `lines`, `crops` and `pages`, which also return the texts and boxes.

The fonts are those of Debian packages. `apt-get download` fetches them and `dpkg -x` unpacks them
into `build/text_images/fonts`, without installing anything. On other systems, put TrueType files
into that folder. The same seed, Pillow and fonts give the same images.
"""

import argparse
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "build/text_images"

PACKAGES = ("fonts-dejavu-core", "fonts-liberation", "fonts-noto-core")
# Of fonts-noto-core, which covers hundreds of scripts, the families with Latin letters.
FAMILIES = ("DejaVu", "Liberation", "NotoSans-", "NotoSerif-")

# Sizes that PaddleOCR's networks are used with: (height, width).
LINE, CROP, PAGE = (48, 320), (48, 192), (480, 480)

WORDS = """
about above across after again air all almost along also always amber and angle animal answer apple
arm around ask autumn away back balance bank basket beach bear because become before begin below
between bicycle big bird black blue board boat body book border both bottle bottom box branch bread
bridge bright bring brown build bus button by call camera candle capital car card carry case castle
cat center chair change charge check circle city class clean clear clock close cloud coast coat
coffee cold color common copper corner cotton count country cover cross cup current curve cut dance
dark day deep degree delta desert desk detail dinner direct doctor door double down dozen draw dream
dress drive dry dust each early earth east edge effect eight electric empty engine enough evening
event every example exit express eye face factory family farm fast father feather field fifty figure
film final find finger fire first fish five flag flat floor flower fly follow food foot forest form
forward fox free fresh friend from front fruit full garden gate general gentle give glass gold good
grain grand grass gray great green ground group guard guest guide half hall hammer hand harbor heart
heavy height help high hill history holiday home honey horse hotel hour house hundred ice idea inch
ink inside iron island jacket jazz join journey juice jump just keep kettle key kind king kitchen
knife lake lamp language large last late laugh lead leaf left lemon letter level light line lion
list little local long lunch machine magnet mail main map market match measure metal middle mile
milk million minute mirror model moment monday money month moon morning motor mountain mouse music
name narrow nation near neck needle never new news night nine noise north note number oak ocean
office oil old olive one open orange order other oven over owner oxygen page paint paper park part
pass path pencil pepper person phone piano picture piece pilot place plan plant plate player pocket
point police pond pool post potato pound power press price print prize public purple quarter queen
question quick quiet quilt radio rail rain range rapid ready record red region report rest result
return rice rich ride right ring river road rock roof room rope round row rubber rule safe sail salt
sand saturday scale school science sea season second seed seven shadow shape sheet ship shoe shop
short shoulder signal silver simple sister six size sky sleep slow small smoke snow soft soil south
space speed spoon spring square stamp star station steam steel step stone storm story street strong
student sugar summer sun sunday supper surface sweet switch table tail tea ten tent test text thank
theater thick thin thirty thread three thunder ticket tiger timber time today tomorrow tool tooth
total touch tower town trade train travel tree triangle truck tunnel turn twelve twenty two under
union unit up useful valley value velvet village violet visit voice volume wagon walk wall warm
wash water wave weather week weight west wheel whisper white wide wind window winter wire wood wool
word world yard year yellow yesterday young zebra zero zigzag zone
""".split()  # noqa: SIM905


@dataclass(frozen=True)
class Lines:
    """Lines of text for recognition: `images` (N, 3, 48, 320), and their `texts`."""

    images: np.ndarray
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Crops:
    """Lines upright or upside down: `images` (N, 3, 48, 192), and `turned` (N,), 1 for 180 deg."""

    images: np.ndarray
    turned: np.ndarray


@dataclass(frozen=True)
class Pages:
    """Pages of several lines: `images` (N, 3, 480, 480), and `boxes` of lines in pixels.

    `boxes` has an array (lines, 4) for each page: left, top, right, bottom.
    """

    images: np.ndarray
    boxes: tuple[np.ndarray, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=FOLDER)
    parser.add_argument("--count", type=int, default=256, help="lines and crops; pages: a quarter")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    np.save(options.output / "lines.npy", lines(options.count, seed=0).images)
    np.save(options.output / "crops.npy", crops(options.count, seed=0).images)
    np.save(options.output / "pages.npy", pages(max(options.count // 4, 1), seed=0).images)


@cache
def lines(count: int, seed: int) -> Lines:
    """Return lines of text that fill most of the width of an image."""
    generator = np.random.default_rng((1, seed))
    texts = [_text(generator, 18) for _ in range(count)]
    images = [_padded(_line(generator, text), LINE) for text in texts]
    return Lines(np.stack(images), tuple(texts))


@cache
def crops(count: int, seed: int) -> Crops:
    """Return lines of text, half of them upside down."""
    generator = np.random.default_rng((2, seed))
    turned = generator.permutation(np.arange(count) % 2)
    images = []
    for is_turned in turned:
        image = _line(generator, _text(generator, 12))
        images.append(_padded(image.rotate(180) if is_turned else image, CROP))
    return Crops(np.stack(images), turned)


@cache
def pages(count: int, seed: int) -> Pages:
    """Return pages with lines of text at random places."""
    generator = np.random.default_rng((3, seed))
    images, boxes = zip(*(_page(generator) for _ in range(count)), strict=True)
    return Pages(np.stack(images), tuple(boxes))


def _text(generator: np.random.Generator, longest: int) -> str:
    """Return words, numbers and signs of at most `longest` characters."""
    makers: list[Callable[[], str]] = [
        lambda: str(generator.integers(10 ** generator.integers(1, 7))),
        lambda: f"{generator.integers(1000)}.{generator.integers(10, 100)}",
        lambda: f"${generator.integers(10, 1000)}.{generator.integers(10, 100)}",
        lambda: f"{generator.integers(1, 100)}%",
        lambda: f"{generator.integers(24):02d}:{generator.integers(60):02d}",
        lambda: f"20{generator.integers(10, 40)}-{generator.integers(10, 13)}",
        lambda: f"#{generator.integers(10, 10_000)}",
        lambda: f"({generator.choice(WORDS)})",
        lambda: f"{generator.choice(WORDS)}@{generator.choice(WORDS)}.com",
        lambda: f"{generator.choice(WORDS)}/{generator.choice(WORDS)}",
    ]

    def part() -> str:
        if generator.random() < 0.3:
            return makers[generator.integers(len(makers))]()
        word = str(generator.choice(WORDS))
        case = generator.random()
        word = word.upper() if case < 0.15 else word.capitalize() if case < 0.5 else word
        return word + str(generator.choice(["", ",", "!", "?", ";", ":", "."], p=_SIGNS))

    wanted = generator.integers(3, longest + 1)
    text = part()
    while len(text) > longest:
        text = part()
    while len(text) < wanted and len(longer := f"{text} {part()}") <= longest:
        text = longer
    return text


# Chance of no sign, and of each sign.
_SIGNS = (0.7, *(0.05,) * 6)


def _colors(generator: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return a color of the paper and one of the ink that differ by 90 levels of gray or more."""
    while True:
        paper, ink = generator.integers(0, 256, (2, 3))
        if abs(float(paper.mean() - ink.mean())) >= 90:
            return tuple(map(int, paper)), tuple(map(int, ink))


def _line(generator: np.random.Generator, text: str) -> Image.Image:
    """Return a tight image of a line, slightly rotated, blurred and noisy."""
    font = _font(generator, int(generator.integers(18, 56)))
    paper, ink = _colors(generator)
    left, top, right, bottom = font.getbbox(text)
    margin = int(font.size * generator.uniform(0.1, 0.3)) + 1
    size = (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin)
    image = Image.new("RGB", size, paper)
    ImageDraw.Draw(image).text((margin - left, margin - top), text, ink, font)
    # Long lines are turned less, so that they stay in the image.
    degrees = generator.uniform(-1, 1) * min(3.0, np.degrees(2 * margin / size[0]))
    image = image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=paper)
    return _with_noise(generator, image)


def _with_noise(generator: np.random.Generator, image: Image.Image) -> Image.Image:
    if generator.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(generator.uniform(0.3, 0.9)))
    noise = generator.normal(0, generator.uniform(0, 14), (image.height, image.width, 3))
    pixels = np.asarray(image, np.float64) + noise
    return Image.fromarray(np.clip(pixels.round(), 0, 255).astype(np.uint8))


def _page(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    height, width = PAGE
    paper, ink = _colors(generator)
    image = Image.new("RGB", (width, height), paper)
    draw, boxes = ImageDraw.Draw(image), []
    y = int(generator.integers(8, 40))
    while True:
        font = _font(generator, int(generator.integers(14, 44)))
        x = int(generator.integers(8, 140))
        text = _text(generator, 24)
        left, top, right, bottom = (int(edge) for edge in draw.textbbox((x, y), text, font))
        if bottom > height - 8:
            break
        if right <= width - 8:
            draw.text((x, y), text, ink, font)
            boxes.append((left, top, right, bottom))
            y = bottom + int(font.size * generator.uniform(0.4, 1.2))
    return _normalized(_with_noise(generator, image)), np.array(boxes, float).reshape(-1, 4)


def _padded(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Scale a line to the height of the network's input, and pad it on the right with zeros."""
    height, width = size
    scaled = min(-(-image.width * height // image.height), width)
    result = np.zeros((3, height, width), np.float32)
    resized = image.resize((scaled, height), Image.Resampling.BILINEAR)
    result[:, :, :scaled] = _normalized(resized)
    return result


def _normalized(image: Image.Image) -> np.ndarray:
    """Return an image as (3, H, W), blue, green, red, from -1 to 1."""
    pixels = np.asarray(image, np.float32)[:, :, ::-1].transpose(2, 0, 1)
    return np.ascontiguousarray((pixels / 255 - 0.5) / 0.5)


def _font(generator: np.random.Generator, size: int) -> ImageFont.FreeTypeFont:
    return _opened(str(generator.choice(fonts())), size)


@cache
def _opened(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@cache
def fonts() -> Sequence[str]:
    """Return the paths of the fonts, in a fixed order; fetch them if there are none."""
    folder = FOLDER / "fonts"
    if not any(folder.glob("**/*.ttf")):
        _fetch(folder)
    paths = (path for path in folder.glob("**/*.ttf") if path.name.startswith(FAMILIES))
    return tuple(str(path) for path in sorted(paths, key=lambda path: path.name))


def _fetch(folder: Path) -> None:
    """Download and unpack the Debian packages."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as downloads:
        try:
            subprocess.run(["apt-get", "download", *PACKAGES], cwd=downloads, check=True)
            for package in sorted(Path(downloads).glob("*.deb")):
                subprocess.run(["dpkg", "-x", package, folder], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(
                f"The fonts of the packages {', '.join(PACKAGES)} are needed ({error}). On Debian "
                f"and Ubuntu, run `apt-get update`; elsewhere, copy TrueType files of them into "
                f"{folder}."
            ) from error


if __name__ == "__main__":
    main()
