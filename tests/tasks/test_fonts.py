"""Pictures find letters of any script in the fonts of the machine."""

import matplotlib
from matplotlib.font_manager import fontManager

from modelmill.tasks.evaluation.fonts import USUAL, every_script, families


def test_the_usual_font_comes_first_and_then_what_is_installed_of_the_others():
    assert families(["Comic", "WenQuanYi Zen Hei", "Noto Sans CJK SC"]) == [
        USUAL,
        "Noto Sans CJK SC",
        "WenQuanYi Zen Hei",
    ]


def test_pictures_are_drawn_with_fonts_that_are_there_and_nothing_else_is_changed():
    before = matplotlib.rcParams["font.family"]
    with every_script():
        assert set(matplotlib.rcParams["font.family"]) <= {
            font.name for font in fontManager.ttflist
        }
    assert matplotlib.rcParams["font.family"] == before
