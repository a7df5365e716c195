"""Figures as PNG files: written whole or not at all, with a font that has Korean letters."""

from pathlib import Path

from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from megatron_ko.errors import DataError
from megatron_ko.storage.files import explain_disk_errors

# Fonts for the letters that matplotlib's own font lacks; the first that is installed is used.
KOREAN = ("Noto Sans CJK KR", "Noto Sans CJK JP", "Noto Sans KR", "NanumGothic", "Malgun Gothic", "AppleGothic")


def check_picture(path: Path) -> None:
    """Refuse, before any work, a path that cannot become a picture.

    Raises:
        DataError: another suffix than .png, or a folder.
    """
    if path.suffix != ".png" or path.is_dir():
        raise DataError(f"no name of a picture: {path}", expected="a name that ends in .png", remedy="--plot NAME.png")


def save_png(figure: Figure, path: Path) -> None:
    """Draw into a file; the same figure gives the same bytes on the same machine.

    Raises:
        DataError: it cannot be written there.
    """
    names = set(font_manager.get_font_names())
    korean = [name for name in KOREAN if name in names][:1]
    FigureCanvasAgg(figure)
    for text in figure.findobj(Text):
        text.set_fontfamily(["DejaVu Sans", *korean])
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=130, metadata={"Software": None})
