"""Pictures: written whole or not at all, with names in Korean readable."""

from pathlib import Path

from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from megatron_ko.errors import DataError
from megatron_ko.storage.files import explain_disk_errors

# The first that is installed draws what matplotlib's own font has no letters for.
KOREAN = ("Noto Sans CJK KR", "Noto Sans CJK JP", "Noto Sans KR", "NanumGothic", "Malgun Gothic", "AppleGothic")


def check_picture(path: Path) -> None:
    """Refuse, before any work, a name that is not that of a new or older picture.

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
