"""The embedded model's pictures: six public icon sets, drawn once, split by concept.

    npm packages (pinned, checked) → SVG → RGBA pictures + a table of (concept, keywords, set, split)

The same concept is drawn by several sets, each in its own style: what an image prompt carries. Licences and
authors: NOTICE. A concept, never a file, is held out: `is_held_out`.
"""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from imprompt.errors import ConfigError, MissingExtra

HELD_OUT_SHARE = 0.1

STYLES = {
    "noto": "noto",
    "noto-v1": "blob",
    "twemoji": "twemoji",
    "emojione": "emojione",
    "fluent-emoji-flat": "flat",
    "fluent-emoji": "fluent",
}
"""Icon set → the word that names its style in captions."""

PACKAGES = {
    "@iconify-json/noto@1.2.9": "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",  # noqa: E501
    "@iconify-json/noto-v1@1.2.5": "sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",  # noqa: E501
    "@iconify-json/twemoji@1.2.5": "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",  # noqa: E501
    "@iconify-json/emojione@1.2.3": "sha512-T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",  # noqa: E501
    "@iconify-json/fluent-emoji-flat@1.2.6": "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",  # noqa: E501
    "@iconify-json/fluent-emoji@1.2.7": "sha512-D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",  # noqa: E501
    "emojibase-data@17.0.0": "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",  # noqa: E501
}
"""npm package → its sha512, as npm publishes it."""


@dataclass(frozen=True)
class Drawing:
    """One picture of the data set: what it shows, in whose style, and on which side of the split."""

    concept: str
    keywords: tuple[str, ...]
    icon_set: str
    held_out: bool

    @property
    def style(self) -> str:
        """The style's word in captions."""
        return STYLES[self.icon_set]


def build_data(folder: Path, *, size: int = 64, downloads: Path | None = None) -> int:
    """Draw every concept of every set at `size` × `size` px into `folder`; return how many there are.

    Writes `pictures.npy` (uint8, drawings × size × size × RGBA, straight alpha), `drawings.jsonl` (one
    `Drawing` a line, same order) and `sources.json`. The folder appears whole or not at all.

    Raises:
        MissingExtra: without the drawing library (`imprompt[mini]`).
        ConfigError: npm is missing, or a package differs from the pinned one.
    """
    with tempfile.TemporaryDirectory() as scratch:
        packages = fetch_packages(downloads or Path(scratch))
        jobs = list(find_drawings(packages))
    drawings, svgs = [drawing for drawing, _ in jobs], [svg for _, svg in jobs]
    pictures = render_all(svgs, size)
    write_data_set(folder, drawings, pictures)
    return len(drawings)


def load_data(folder: Path) -> tuple[np.ndarray, list[Drawing]]:
    """The pictures (uint8, drawings × height × width × RGBA) and their drawings, in order."""
    if not (folder / "pictures.npy").exists():
        raise ConfigError(f"no pictures in {folder}: make them with `imprompt mini build-data`")
    lines = (folder / "drawings.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    drawings = [Drawing(**{**row, "keywords": tuple(row["keywords"])}) for row in rows]
    return np.load(folder / "pictures.npy"), drawings


def is_held_out(concept: str) -> bool:
    """Whether no model may see this concept in training: the first `HELD_OUT_SHARE` of the names' hashes."""
    digest = hashlib.sha256(concept.encode()).digest()
    return int.from_bytes(digest[:4]) / 2**32 < HELD_OUT_SHARE


def fetch_packages(folder: Path) -> dict[str, Path]:
    """Download the pinned packages with npm, check and unpack them; package name → its unpacked folder."""
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigError("the pictures come from npm packages and npm is not installed: install Node.js")
    folder.mkdir(parents=True, exist_ok=True)
    unpacked = {}
    for spec, integrity in track(PACKAGES.items(), description="packages"):
        name = spec.rsplit("@", 1)[0]
        archive = folder / (spec.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz")
        if not archive.exists():
            subprocess.run([npm, "pack", "--silent", spec], cwd=folder, check=True, capture_output=True)
        check_integrity(archive, integrity)
        unpacked[name] = unpack(archive)
    return unpacked


def check_integrity(archive: Path, integrity: str) -> None:
    """Refuse an archive that is not byte for byte the pinned one."""
    digest = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if digest != integrity:
        raise ConfigError(f"{archive.name} is not the pinned package ({digest}, not {integrity}): delete it")


def unpack(archive: Path) -> Path:
    """Unpack an npm archive beside itself and return its `package` folder."""
    target = archive.with_suffix("")
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")
    return target / "package"


def find_drawings(packages: dict[str, Path]) -> Iterator[tuple[Drawing, str]]:
    """Every (drawing, SVG) that some set has for an emoji, no skin-tone variants, in a fixed order."""
    emoji = json.loads((packages["emojibase-data"] / "en" / "data.json").read_text())
    concepts = {slug(entry["label"]): entry for entry in emoji if "group" in entry}
    for icon_set in STYLES:
        icons = json.loads((packages[f"@iconify-json/{icon_set}"] / "icons.json").read_text())
        for name, entry in concepts.items():
            icon = find_icon(icons, name)
            if icon is not None:
                keywords = tuple(entry.get("tags", ()))
                drawing = Drawing(entry["label"], keywords, icon_set, is_held_out(entry["label"]))
                yield drawing, to_svg(icon, icons)


def find_icon(icons: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The icon of that name in an icon set, through its aliases."""
    alias = icons.get("aliases", {}).get(name, {})
    return icons["icons"].get(name) or icons["icons"].get(alias.get("parent"))


def slug(label: str) -> str:
    """An emoji's label as the icon sets spell it: `woman’s hat` → `womans-hat`."""
    plain = re.sub("[’'“”.!]", "", label.lower().replace("&", "and").replace("ñ", "n").replace("é", "e"))
    return re.sub("[^a-z0-9]+", "-", plain).strip("-")


def to_svg(icon: dict[str, Any], icons: dict[str, Any]) -> str:
    """An icon's body as a whole SVG document."""
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {namespaces} viewBox="0 0 {width} {height}">{icon["body"]}</svg>'


def render_all(svgs: list[str], size: int) -> np.ndarray:
    """Draw SVGs on all cores: uint8, drawings × size × size × RGBA."""
    with ProcessPoolExecutor() as pool:
        drawn = pool.map(render, svgs, [size] * len(svgs), chunksize=64)
        return np.stack(list(track(drawn, description="pictures", total=len(svgs))))


def render(svg: str, size: int) -> np.ndarray:
    """Draw one SVG, fitted into a transparent square: uint8, size × size × RGBA."""
    try:
        import resvg_py
    except ImportError as error:
        raise MissingExtra("resvg_py", "mini") from error
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)
    picture = Image.open(BytesIO(bytes(png))).convert("RGBA")
    square = Image.new("RGBA", (size, size))
    square.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    return np.asarray(square)


def write_data_set(folder: Path, drawings: list[Drawing], pictures: np.ndarray) -> None:
    """Write the data set into a temporary folder beside its place, then move it there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    np.save(scratch / "pictures.npy", pictures)
    (scratch / "drawings.jsonl").write_text("".join(json.dumps(asdict(d)) + "\n" for d in drawings))
    (scratch / "sources.json").write_text(json.dumps(PACKAGES, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
