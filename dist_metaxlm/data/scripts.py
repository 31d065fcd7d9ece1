"""Scripts that are written without spaces between words."""

from __future__ import annotations

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1100-\u11ff\u3040-\u30ff\u3100-\u318f\u31f0-\u31ff\u3400-\u4dbf" \
           "\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
"""Inside of a character class: Thai, Lao, Burmese, Khmer, Kana, Han, and Hangul, whose syllables carry as much as several
Latin letters."""
