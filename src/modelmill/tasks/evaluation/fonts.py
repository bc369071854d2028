"""Fonts for pictures with text of any script: matplotlib's own font covers Latin, Greek, Cyrillic
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
"""Font families of Linux distributions for other scripts, the more legible first."""


def families(installed: Collection[str]) -> list[str]:
    """The installed fonts, in the order in which a glyph is looked up."""
    return [USUAL, *(name for name in FURTHER if name in installed)]


@contextmanager
def every_script() -> Iterator[None]:
    """Let matplotlib use any installed font that has a glyph."""
    import matplotlib
    from matplotlib.font_manager import fontManager

    with matplotlib.rc_context(
        {"font.family": families({font.name for font in fontManager.ttflist})}
    ):
        yield
