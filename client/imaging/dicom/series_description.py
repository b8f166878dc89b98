"""What a series' description says, in the languages and shorthands in which people type them.

English, German, French, Spanish, Italian, Portuguese and Dutch, Japanese and Chinese where naming
is common, and the scanners' own sequence names. Pure. A description is made plain first: without
accents, lower case, words apart by single spaces, ``+`` and ``*`` kept.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_SCRIPTS: Final = re.compile(  # where Latin letters meet Japanese or Chinese ones
    r"(?<=[a-z0-9])(?=[\u3040-\u9fff])|(?<=[\u3040-\u9fff])(?=[a-z0-9])"
)
_LETTERS: Final = str.maketrans("ıİłŁ", "iIlL")  # these do not decompose
_PREFIX: Final = (
    r"(?<![a-z0-9])(?:ax|axi|axial|tra|sag|cor|[23]d|se|tse|fse|gre|fs|post|pre|gd|ce|km|ir|[esd])?"
)
_T1: Final = re.compile(
    rf"{_PREFIX}t1(?!\d| ?map| ?rho)|mp ?rage|\bbravo\b|fspgr|\bspgr\b|\bvibe\b|mdeft|\bmp2rage"
    r"|\bt1tfe|\b3d ?tfe\b|\bgeir\b"
)
_T2: Final = re.compile(rf"{_PREFIX}t2(?!\d| ?map| ?\*| ?star)")
_FLAIR: Final = re.compile(r"flair|dark ?fluid|\bfir\b|フレア|压水|黑水|水抑制|液体衰减")
_PROTON: Final = re.compile(r"\b(?:pd|pdw|dp|proton\w*|densit\w* protoni\w*|rho)\b|质子|プロトン")

_OTHER: Final = {
    "a localiser": r"locali[sz]|\bloc\b|scout|survey|\b3 ?plane|\b3 ?pl\b|plan scan|reperage"
    r"|smart ?brain|topogram|scanogram|locator|lokali|localizzatore|\bposdisp\b"
    r"|\b(?:ue?bersicht|overzicht|przeglad)\w*|位置決め|スカウト|定位",
    "a calibration scan": r"\bcal\b|calibrat|kalibr|\basset\b|sense ?ref|ref ?scan|\bshim|prescan"
    r"|\bref (?:head|brain)\b|field ?map|\bb0 ?map|\bb1 ?map|coil ?sens",
    "diffusion": r"dwi\b|\bdw\b|\bd[wt]i\b|d[iy](?:ff|fu[sz])|\bb ?1000\b|\btrace\w*|\be?adc\b"
    r"|\bfa\b|tensor|fractional aniso|hardi|\bdki\b|拡散|弥散|扩散",
    "perfusion": r"perf|\bdsc\b|\bdce\b|\bp?c?asl\b|\bpwi\b|[gp]bp\b|\bttp\b|\btmax\b"
    r"|\b(?:r|rel)?(?:cbf|c?bv|mtt)\b|dynamic|dynami[ks]|\btwist\b|\btricks\b|灌注|灌流",
    "susceptibility or T2*": r"\bswi\w*|\bswan\w*|ven ?bold|\bt2 ?\*|t2 ?star|\bh(?:ae?|e)mo\w*"
    r"|\bt2w? (?:\w+ )?(?:gre|ffe|fe|fl[23]d|eg)\b|\b(?:gre|ffe|fe|eg) t2|\bpha\b"
    r"|\bfsbb\b|\bmag images\b|\bbsi\b|\bmedic\b|\bqsm\b|\bffe t2|\bsusc\w*|磁化率|磁敏感",
    "angiography": r"\btof\b|angio|\bmra\b|\bmrv\b|venogra|\bpca\b|phase contrast|\bpc [23]d"
    r"|\b[23]d pc\b|血管",
    "functional": r"\bbold\b|fmri|resting state",
    "spectroscopy": r"spe[ckt]tro|\bsvs\b|\bcsi\b|\bmrs\b|\bpress\b|\bprobe\b|波谱",
    "a map or another kind of contrast": r"\bt[12] ?map|\bmaps?\b|mapping|\bt1 ?rho|\bmtr\b|\bmtc\b"
    r"|synthetic|\bstir\b|\bdir\b|ciss(?:\b|3d)|fiesta|b ?ffe|true ?fisp|\bmrcp\b|\binv ?[12]\b"
    r"|elasto|\bapt\w?\b|\bcest\b",
    "a fat or opposed-phase image": r"dixon.*\b(?:f|fat|opp)\b",
    "a subtraction": r"\bsub\b|subtra|subtrakt|sottraz|soustrac|sustrac|減算|减影",
    "a projection": r"\bmini?p\b|\bmip\b|\btmip\b|projection",
    "a report or screenshot": r"report|screen|screenshot|capture|dose info|protocol page|befund"
    r"|processed images",
    "another part of the body": r"spine|spinal|lumbar|thoracic|cervical|\b[chblwt]ws\b|wirbel"
    r"|\bneck\b|rachis|colonna|columna|coluna|abdomen|orbit|hypophys|pituitar|sella|\biac\b"
    r"|innenohr|felsenbein",
}
_EXCLUDED: Final = {reason: re.compile(pattern) for reason, pattern in _OTHER.items()}
_REFORMATTED: Final = re.compile(
    r"\bmpr\b(?! ns\b)|\breformat\w*|\brecon\b|\brefmt\b|\breconstr\w*"
)


def unaccented(text: str) -> str:
    """Return ``text`` in lower case, without accents, Latin letters apart from others."""
    text = unicodedata.normalize("NFKC", text).translate(_LETTERS).lower().replace("_", " ")
    text = re.sub(r"\bpós\b", "post", text)
    text = "".join(
        one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one)
    )
    return _SCRIPTS.sub(" ", unicodedata.normalize("NFKC", text))


def plain(text: str) -> str:
    """Return ``text`` made plain, with a space at both ends of each word."""
    return " ".join(re.sub(r"[^\w+*]", " ", unaccented(text)).split())


def weightings(text: str) -> set[str]:
    """Return which of T1, T2, FLAIR and PD plain ``text`` names; "T2 FLAIR" is FLAIR alone."""
    found = {
        name
        for name, pattern in (("T1", _T1), ("T2", _T2), ("FLAIR", _FLAIR), ("PD", _PROTON))
        if pattern.search(text)
    }
    if "FLAIR" in found:
        # "T1 FLAIR" is a T1 with an inversion pulse; "T2 FLAIR" and "FLAIR" are what we look for.
        return {"T1"} if "T1" in found and "T2" not in found else {"FLAIR"}
    return found


def excluded(text: str) -> str:
    """Return what plain ``text`` says a series is, when that is no anatomical sequence; or ""."""
    return next((reason for reason, one in _EXCLUDED.items() if one.search(text)), "")


def reformatted(text: str) -> bool:
    """Return whether plain ``text`` says that the series was computed from another's slices."""
    return _REFORMATTED.search(text) is not None
