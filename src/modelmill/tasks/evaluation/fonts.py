"""Fonts for pictures with words of any script: what matplotlib brings knows Latin, Greek, Cyrillic
and Arabic alone.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

USUAL = "DejaVu Sans"
FURTHER = (
    "Noto Sans CJK SC",
    "Noto Sans CJK TC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "AR PL UMing CN",
    "Droid Sans Fallback",
    "IPAGothic",
    "TakaoGothic",
    "NanumGothic",
    "Noto Sans Devanagari",
    "Noto Sans Bengali",
    "Noto Sans Tamil",
    "Noto Sans Hebrew",
    "Noto Sans Thai",
    "Lohit Devanagari",
    "Garuda",
    "Unifont",
)
"""Families that Linux distributions have for other scripts, the more legible first."""


def families(installed: Collection[str]) -> list[str]:
    """The fonts that are asked in turn for a letter, of those that are installed."""
    return [USUAL, *(name for name in FURTHER if name in installed)]


@contextmanager
def every_script() -> Iterator[None]:
    """Pictures that are drawn inside find their letters in any font of this machine that has
    them.
    """
    import matplotlib
    from matplotlib.font_manager import fontManager

    with matplotlib.rc_context(
        {"font.family": families({font.name for font in fontManager.ttflist})}
    ):
        yield
