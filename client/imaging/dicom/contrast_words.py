"""Whether a series' name says that contrast was given: a grammar of the words that people type.

A name is cut into tokens, and each token has a kind: an agent ("Gd", "KM", "mdc"), a preposition
that negates ("ohne", "w/o"), sets before ("vor", "pre"), after ("nach", "post") or with ("mit",
"c/"), a sign, and so on. A preposition speaks of what follows it: "ohne KM" is without contrast,
"ohne FS" is without fat saturation, "post op" is after an operation. A minus that touches an agent
from one side only negates it ("Gd-", "-Gd", "Gd (-)"); between two letters or digits it joins
("T1-Gd"). What contradicts itself, and what only might be meant so, is never decided here.

English, German, French, Spanish, Italian, Portuguese, Dutch, Polish, Turkish, Czech, Swedish and
Danish, Japanese and Chinese; the commonest words of Russian, Romanian and Finnish. Pure. What kind
of sequence a series is, ``series_description`` says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Final, NamedTuple

from client.imaging.dicom.series_description import unaccented


class Contrast(Enum):
    """What a name says of contrast."""

    WITH = "with contrast"
    WITHOUT = "without contrast"
    BOTH = "as with contrast and as without"
    UNCLEAR = "in a way that may or may not mean contrast"
    PERHAPS = "in a way that may mean contrast"
    NOTHING = "nothing"


class _Kind(Enum):
    AGENT = "names contrast"
    HINT = "may name contrast, where something else says so"
    WITHOUT = "says by itself that there is no contrast"
    WITH = "says by itself that there is contrast"
    NO = "negates what follows"
    BEFORE = "before what follows"
    AFTER = "after what follows"
    ALONG = "with what follows"
    BEHIND_NO = "negates the agent that it follows"
    BEHIND_YES = "affirms the agent that it follows"
    EVENT = "is no contrast, but has a before and an after"
    FEATURE = "is no contrast, but may be on or off"
    JOIN = "joins two words"
    FILLER = "means nothing here"
    NEUTRAL = "names plane, technique or number"
    WEIGHTING = "T1 or T2"
    PLUS = "+"
    MINUS = "-"
    EITHER = "+/-"
    DOUBT = "doubts"
    BREAK = "ends a phrase"
    UNKNOWN = "any other word"


_K = _Kind
_PREPOSITIONS: Final = (_K.NO, _K.BEFORE, _K.AFTER, _K.ALONG)


class _Token(NamedTuple):
    """A token; a ``weak`` preposition means nothing unless an agent follows it.

    Of a sign, ``left`` and ``right`` tell whether it touches a letter or digit there.
    """

    kind: _Kind
    text: str
    weak: bool = False
    left: bool = False
    right: bool = False


def _lexicon(words: dict[_Kind, str], *, weak: bool) -> dict[str, _Token]:
    return {
        word: _Token(kind, word, weak=weak) for kind, text in words.items() for word in text.split()
    }


_WORDS: Final = _lexicon(
    {
        _K.NO: "ohne kein keine without wo sans senza sin sem zonder geen bez utan uden ø ilman"
        " fara без",
        _K.BEFORE: "pre prae pra vor avant antes prima voor przed before før innan до",
        _K.AFTER: "post nach apres apos dopo after tras despues depois после",
        _K.ALONG: "mit with avec con com met",
        _K.BEHIND_NO: "oncesi once free frei nein none nil neg negativ negative yok nelkul",
        _K.BEHIND_YES: "sonrasi sonra",
        _K.JOIN: "and und et e y en i ve og och oder or ou",
        _K.FILLER: "de del di do da des du d the of podaniu podanie podaniem gabe gift agent"
        " medium media mittel mezzo produit la le el il",
        _K.DOUBT: "fraglich evtl eventuell maybe possible possibly vielleicht ggf optional falls",
        _K.EVENT: "op ops operation operativ operative operatorio operatoire operatorisch operacji"
        " surgery surgical surg rt xrt srs radiation radio radiotherapy chemo tx treatment therapy"
        " therapie biopsy biopsie bx resection resektion craniotomy shunt trauma ictal fossa"
        " tmz temodar gamma gk cyberknife avastin bev embolization coiling clipping implant dbs"
        " injury seizure chirurgie bestrahlung strahlentherapie radioterapia cirugia cirurgia"
        " intervento trattamento operatie behandeling zabieg ameliyat"
        " stroke proc processing processed process fosse",
        _K.FEATURE: "fs fat fatsat sat spair spir saturation saturacion saturazione saturacao mt"
        " mtc motion flow comp fc gap ats nav fettsattigung fettunterdruckung vetsuppressie grasa"
        " vetonderdrukking grasso graisse gordura suppression supresion supressao sense"
        " fettsaettigung fettsat stir angulation grappa"
        " caipi asset arc",
        _K.NEUTRAL: "ax axi axial axiale axiales assiale aksiyel tra trans transv transversal"
        " transverse transversaal trs sag sagital sagittal sagittale sagital cor coronal coronale"
        " koronal koronar kor obl oblique se es eg tse fse gre ge ffe tfe ir tir fl2d fl3d fl"
        " flash mprage mpr mp mp2rage bravo fspgr spgr vibe space cube vista view brain head kopf"
        " hirn tete cerebro cranio cerebral neuro iso p2 p3 p4 ns hr hires mm dim 3d 2d wip dixon"
        " blade propeller radar jet arms matrix fsp thin thick dunn stealth brainlab navigation"
        " flair dark fluid darkfluid tirm rage cerveau encefalo encephale cabeza testa glowa"
        " hoofd hersenen beyin delayed delay late dyn dynamisch spat min sec slab multi single"
        " volume vol recon rek rot nd dis2d dis3d copy moco clear hi high res resolution sms cs"
        " wave water standard std routine fast whole full isotropic all"
        " weighted w1 wi tumor tumour glioma repeat rpt wdh new neu",
    },
    weak=False,
)
_WEAK: Final = _lexicon(
    {
        _K.NO: "o k s s/ no non not nao u",
        _K.BEFORE: "v fore",
        _K.AFTER: "n p na po pos efter e.",
        _K.ALONG: "m w w/ c/ z med \u0441",
    },
    weak=True,
)
_AGENT: Final = re.compile(
    r"km|ivkm|kontras[tc]\w*|kontr|contrast\w*|contr|gd|gd(?:dtpa|dota|do3a|bt\w*)|gad\w*|gbca|mdc"
    r"|civ|ce|pdc|inj|injec\w*|injek\w*|inyec\w*|iniez\w*|enhanced?|enhancement|dota\w{1,5}|magnevist"
    r"|prohance|multihance|clariscan|omniscan|vueway|elucirem|primovist|cyclolux|ilacli|контраст\w*|ку"
)
_SAYS_WITHOUT: Final = re.compile(
    r"nati[vf]\w*|нативн\w*|ilacsiz|bianco|blanc|plain|blanco|unenhanced|nonenhanced|basale?|simple|nc|noncon\w*|kontrastsiz"
    r"|kontrast(?:mittel)?(?:frei|los)\w*|contrastfree|unkontrast\w*|bezkontrast\w*"
)
_HINTS: Final = ("c", "iv", "pc", "cont")
"""Said alone these may mean contrast, or a plane or something else."""
_EITHER_WAY: Final = ("sc", "cc")
"""Said alone: without contrast, with it, or nothing."""
_DANGLING: Final = ("w", "w/", "s/", "c/", "no", "non", "not")
"""Where they are left with nothing that they speak of, something was meant by them."""
_JOINED_HINT: Final = re.compile(r"(?<=[a-z0-9])-(?:c|iv)(?![a-z0-9])")
"""In "T1-C" the hyphen may join or negate."""
_QUIET_HINTS: Final = ("k", "kl", "cm", "ev")
"""Said alone these mean nothing."""
_TAKE_HINTS: Final = ("w", "w/", "c/", "s/", "no", "non", "po")
"""Weak prepositions that can be told even before a mere "C" or "IV"."""
_EVENT_STEMS: Final = (
    "operat", "chirur", "surg", "ictal", "radi", "treat", "proced", "chemo", "therap", "bestrahl",
    "rese", "biops", "trauma", "embol",
)  # fmt: skip
_SCRIPT_WITHOUT: Final = re.compile(
    r"造影(?:前|なし|無し?)|無造影|非造影|単純|平扫|平掃|非增强|非增強|增强前"
)
_SCRIPT_WITH: Final = re.compile(r"造影|増強|增强|增強|強化|强化|ガド")
_ENGLISH: Final = ("pre", "post", "non", "no", "w", "wo", "without", "with")

_LEX: Final = re.compile(
    r"(?<![^\s(])[wsc]/|[a-z0-9ø*\u0430-\u044f]+|[\u3040-\u9fff]+|\(\s*[-+]\s*\)|\[\s*[-+]\s*\]|\+\s*/\s*-|-\s*/\s*\+|±"
    r"|[-+/&?\ufffd()\[\],;:|=<>]"
)
_DASHES: Final = re.compile(r"[\u2010-\u2015\u2212\ufe63]")
_INITIALS: Final = re.compile(r"(?<![a-z0-9])(?:[a-z]\.){2,}[a-z]?(?![a-z0-9])")
_SLASHED: Final = (  # a slash that abbreviates; any other stands between two words
    (re.compile(r"\bw ?/ ?o(?:ut)?\b|\bw-o\b"), " without "),
    (re.compile(r"\bn/c\b"), " nc "),
    (re.compile(r"\bs/c\b"), " sin contraste "),
    (re.compile(r"\bc/c\b"), " con contraste "),
)
_WEIGHTING: Final = re.compile(
    r"(?:ax|axi|axial|tra|sag|cor|[23]d|se|tse|fse|gre|fs|ir|[esd])?(t[12])(w(?:i|eighted)?)?"
)
_GLUED: Final = (
    # what may stand before an agent without a space, what stands there, the agents it may precede
    (r"no|non|wo|without|ohne|sin|sem|sans|senza|un", _K.NO, ""),
    (r"pre|prae|pra|vor", _K.BEFORE, ""),
    (r"post|pos|nach|apos|po", _K.AFTER, ""),
    (r"mit|with|avec", _K.ALONG, ""),
    (r"o|k", _K.NO, "km"),
    (r"v", _K.BEFORE, "km"),
    (r"n|p|e", _K.AFTER, "km"),
    (r"m", _K.ALONG, "km"),
    (r"s", _K.NO, r"mdc|civ|gd|gad\w*|contrast\w*"),
    (r"c", _K.ALONG, r"mdc|civ|gd|gad\w*|contrast\w*"),
    (r"w", _K.ALONG, r"c|gd|gad\w*|contrast\w*"),
)
_GLUED_PATTERNS: Final = tuple(
    (re.compile(rf"({first})({then or _AGENT.pattern + '|con|c'})"), kind)
    for first, kind, then in _GLUED
)
_LONGEST: Final = 256
_PLANES: Final = ("ax", "tra", "trs", "sag", "cor")
_ENDS: Final = ("fs", "fatsat", "ax", "axial", "tra", "sag", "cor", "3d", "iso")
_MAY_END: Final = re.compile(r"pre|post|gd|gado?|km|nativ|kontrast|contrast|mdc|inj")


def contrast(name: str) -> Contrast:
    """Return what the series' ``name``, as it was typed, says of contrast.

    DICOM allows 64 letters; what is far longer is no name, and is not read.

    >>> contrast("T1-Gd"), contrast("T1 Gd-"), contrast("AX T1 W/O FS").name
    (<Contrast.WITH: 'with contrast'>, <Contrast.WITHOUT: 'without contrast'>, 'NOTHING')
    """
    if len(name) > _LONGEST:
        return Contrast.UNCLEAR
    tokens = list(_tokens(name))
    said = set(_phrases(tokens)) | set(_signs(tokens))
    if len(said) > 1:
        said.discard(Contrast.PERHAPS)
    if Contrast.UNCLEAR in said:
        return Contrast.UNCLEAR
    if len(said) > 1:
        return Contrast.BOTH
    if said:
        return said.pop()
    hints = {one.text for one in tokens if one.kind is _K.HINT}
    if hints & {*_EITHER_WAY} or _JOINED_HINT.search(_DASHES.sub("-", name.lower())):
        return Contrast.UNCLEAR
    return Contrast.PERHAPS if hints & {*_HINTS} else Contrast.NOTHING


def _tokens(name: str) -> Iterator[_Token]:
    """Yield the tokens of ``name``; a minus between letters or digits is none."""
    text = _DASHES.sub("-", unaccented(name))
    text = _INITIALS.sub(lambda found: found.group().replace(".", ""), text)
    for pattern, instead in _SLASHED:
        text = pattern.sub(instead, text)
    before = ""
    for found in _LEX.finditer(text):
        one = found.group()
        left = text[found.start() - 1 : found.start()].isalnum()
        right = text[found.end() : found.end() + 1].isalnum()
        if one in ("w/", "s/", "c/"):
            yield _WEAK[one]
        elif one == "con" and before in _ENGLISH:
            yield _Token(_K.AGENT, one)
        elif one[0] in "([" and len(one) > 1:
            kind = _K.MINUS if "-" in one else _K.PLUS
            yield _Token(kind, "()")
        elif one == "-":
            if not (left and right):
                yield _Token(_K.MINUS, one, left=left, right=right)
        elif one == "+":
            yield _Token(_K.PLUS, one, left=left, right=right)
        elif "+" in one or one == "±":
            yield _Token(_K.EITHER, one)
        elif one in "?\ufffd":
            yield _Token(_K.DOUBT, one)
        elif one in "/&":
            yield _Token(_K.JOIN, one)
        elif not one[0].isalnum():
            yield _Token(_K.BREAK, one)
        elif one[0] >= "\u3040":
            yield from _script(one)
        else:
            yield from _split(one)
        before = one


def _script(run: str) -> Iterator[_Token]:
    """Yield what Japanese or Chinese letters say."""
    rest, without = _SCRIPT_WITHOUT.subn("", run)
    if without:
        yield _Token(_K.WITHOUT, run)
    if _SCRIPT_WITH.search(rest):
        yield _Token(_K.WITH, run)


def _split(run: str) -> tuple[_Token, ...]:
    """Return the tokens of a run of letters and digits: "t1post" is two words."""
    if known := _known(run):
        return (known,)
    if found := _WEIGHTING.match(run):
        weighting = _Token(_K.WEIGHTING, found.group(1))
        for rest in (run[found.end() :], run[found.end(1) :]):  # "t1wc" is "t1w c" or "t1 wc"
            then = (_Token(_K.AGENT, rest),) if rest == "c" else _words(rest)
            if _tells(then):
                return (weighting, *then)
    if (found := re.fullmatch(r"(\w+?)(t[12]w?)", run)) and _tells(first := _words(found.group(1))):
        return (*first, _Token(_K.WEIGHTING, found.group(2)))
    return _words(run)


def _words(run: str) -> tuple[_Token, ...]:
    """Return the tokens of a run of letters and digits in which no weighting is."""
    if known := _known(run):
        return (known,)
    for pattern, kind in _GLUED_PATTERNS:
        if found := pattern.fullmatch(run):
            return (_Token(kind, found.group(1)), _Token(_K.AGENT, found.group(2)))
    if run[:-1] in _PLANES and run[-1] == "c":
        return (_WORDS[run[:-1]], _Token(_K.HINT, "c"))
    for end in _ENDS:
        for rest in (run.removesuffix(end), run.removeprefix(end)):
            if rest != run and _MAY_END.fullmatch(rest) and (known := _known(rest)):
                return (known, _WORDS[end]) if run.endswith(end) else (known,)
    plain = re.sub(r"(?<=[a-z]{2})\d+$", "", run)
    if plain != run and _tells(then := _words(plain)):  # "gd1", "post2"
        return then
    return (_Token(_K.UNKNOWN, run),)


def _known(word: str) -> _Token | None:
    if found := _WORDS.get(word) or _WEAK.get(word):
        return found
    if _WEIGHTING.fullmatch(word):
        return _Token(_K.WEIGHTING, word)
    if _SAYS_WITHOUT.fullmatch(word):
        return _Token(_K.WITHOUT, word)
    if _AGENT.fullmatch(word):
        return _Token(_K.AGENT, word)
    if word in (*_HINTS, *_EITHER_WAY, *_QUIET_HINTS):
        return _Token(_K.HINT, word)
    if len(word) == 1 or word.isdigit() or re.fullmatch(r"\d+[a-z]{0,3}", word):
        return _Token(_K.NEUTRAL, word)
    if word.startswith(_EVENT_STEMS):
        return _Token(_K.EVENT, word)
    return None


def _tells(tokens: Sequence[_Token]) -> bool:
    """Say whether a part of a word is worth cutting the word for."""
    kinds = {one.kind for one in tokens if not one.weak}
    return bool(kinds & {_K.AGENT, _K.WITHOUT, _K.BEFORE, _K.AFTER})


def _is_agent(token: _Token) -> bool:
    """Say whether a token can be meant by a sign or a preposition; "k" is a hint too."""
    return token.kind in (_K.AGENT, _K.HINT) or token.text in _QUIET_HINTS


def _phrases(tokens: Sequence[_Token]) -> Iterator[Contrast]:
    """Yield what prepositions and words say, each agent in one phrase only."""
    governed: set[int] = set()
    for place, token in enumerate(tokens):
        if token.kind in _PREPOSITIONS:
            said, objects = _governs(tokens, place)
            governed.update(objects)
            if said:
                yield said
    agents = any(one.kind is _K.AGENT for one in tokens)
    for place, token in enumerate(tokens):
        following = next((one for one in tokens[place + 1 :] if one.text not in ":="), None)
        if token.kind is _K.WITHOUT:
            ganglia = following is not None and following.text.startswith("gang")
            if not ganglia:
                yield Contrast.WITHOUT
        elif token.kind is _K.WITH:
            yield Contrast.WITH
        elif token.kind is _K.EITHER or (token.kind is _K.DOUBT and (agents or token.text == "?")):
            yield Contrast.UNCLEAR
        elif token.kind is _K.AGENT and place not in governed:
            yield from _alone(tokens, place, following)


def _alone(tokens: Sequence[_Token], place: int, following: _Token | None) -> Iterator[Contrast]:
    """Yield what an agent says that no preposition governs; its signs speak for themselves."""
    if following is not None and following.kind is _K.BEHIND_NO:
        yield Contrast.WITHOUT
    elif following is not None and following.kind is _K.NO and following.weak:
        # "Gd no" may say no; "Gd no FS" speaks of fat
        if _object(tokens, place + 1) is None:
            yield Contrast.UNCLEAR
        else:
            yield Contrast.WITH
    elif not any(place in _meant(tokens, sign) for sign in range(len(tokens))):
        yield Contrast.WITH


def _object(tokens: Sequence[_Token], place: int) -> int | None:
    """Return where the word is that the preposition at ``place`` speaks of.

    Past a joined preposition: in "vor und nach KM" both speak of the agent.
    """
    joined = False
    for at in range(place + 1, len(tokens)):
        kind = tokens[at].kind
        if kind in (_K.BREAK, _K.PLUS, _K.MINUS) or (kind in _PREPOSITIONS and not joined):
            return at if tokens[at].text in _QUIET_HINTS and at == len(tokens) - 1 else None
        joined = joined or kind is _K.JOIN
        if kind not in (_K.JOIN, _K.FILLER, *_PREPOSITIONS):
            return at
    return None


def _governs(tokens: Sequence[_Token], place: int) -> tuple[Contrast | None, set[int]]:
    """Return what the preposition at ``place`` says, and which agents it speaks of."""
    token, at = tokens[place], _object(tokens, place)
    what = tokens[at] if at is not None else None
    negative = token.kind in (_K.NO, _K.BEFORE)
    meant = Contrast.WITHOUT if negative else Contrast.WITH
    if at is not None and what is not None and _is_agent(what):
        if token.weak and what.kind is not _K.AGENT and token.text not in _TAKE_HINTS:
            return Contrast.UNCLEAR, {at}
        if token.text in ("s", "z"):  # "z kontrastem", "s kontrastem": with; "z. contrast": without
            along = what.text.endswith("em")
            meant = Contrast.WITH if along else Contrast.WITHOUT
            if token.text == "z" and not along:
                meant = Contrast.UNCLEAR
        return meant, set(_run(tokens, at))
    if token.weak:
        if token.text not in _DANGLING or (what is not None and what.kind is _K.FEATURE):
            return None, set()
        followed = place + 1 < len(tokens) and tokens[place + 1].kind in (_K.JOIN, *_PREPOSITIONS)
        if "/" in token.text or (followed and what is None):  # "w/wo"
            return Contrast.UNCLEAR, set()
        if _others(tokens, place) or not (what is None or token.text == "w"):
            return None, set()
        return (Contrast.PERHAPS if token.text == "w" else Contrast.UNCLEAR), set()
    if token.kind is _K.ALONG and at == place + 1 and what is not None and what.text[0].isdigit():
        return None, set()
    if what is None or what.kind in (_K.NEUTRAL, _K.WEIGHTING, _K.WITHOUT, _K.WITH, _K.DOUBT):
        return meant, set()
    if what.kind is _K.EVENT:
        return None, set()
    if what.kind is _K.FEATURE:
        timed = token.kind in (_K.BEFORE, _K.AFTER) and what.text != "sat"
        return (meant if timed else None), set()
    if token.kind is _K.BEFORE:
        return meant, set()
    return (Contrast.PERHAPS if token.kind is _K.AFTER else Contrast.UNCLEAR), set()


def _others(tokens: Sequence[_Token], place: int) -> bool:
    """Say whether anything but the token at ``place`` speaks of contrast."""
    rest = [one for at, one in enumerate(tokens) if at != place]
    return any(one.kind in (_K.AGENT, _K.WITHOUT, _K.WITH) for one in rest) or any(
        one.kind in _PREPOSITIONS and not one.weak for one in rest
    )


def _run(tokens: Sequence[_Token], start: int) -> Iterator[int]:
    """Yield the places of agents that name one thing: "injection de gadolinium", "iv contrast"."""
    for at in range(start, len(tokens)):
        if not _is_agent(tokens[at]) and tokens[at].kind is not _K.FILLER:
            return
        yield at


def _meant(tokens: Sequence[_Token], sign: int) -> set[int]:
    """Return the place of the agent or weighting that the sign at ``sign`` speaks of, if any.

    A plus stands before an agent or behind it. A minus does too where it touches it, else only at
    the end; "(-)" does everywhere.
    """
    token = tokens[sign]
    if token.kind not in (_K.PLUS, _K.MINUS):
        return set()
    before = sign - 1 if sign and _is_agent(tokens[sign - 1]) else None
    after = sign + 1 if sign + 1 < len(tokens) and _is_agent(tokens[sign + 1]) else None
    weighting = sign - 1 if sign and tokens[sign - 1].kind is _K.WEIGHTING else None
    last = sign == len(tokens) - 1
    if token.text == "()":
        order = (before, after, weighting)
    elif token.kind is _K.PLUS:
        order = (after, before, weighting)
        if token.left and not token.right:
            order = (before, weighting, after)
    elif token.left:
        order = (before, weighting, None)
    elif token.right:
        order = (after, None, None)
    else:
        order = (before if last else None, weighting if last else None, None)
    return {next((one for one in order if one is not None), -1)} - {-1}


def _signs(tokens: Sequence[_Token]) -> Iterator[Contrast]:
    """Yield what signs say."""
    for place, token in enumerate(tokens):
        if token.kind not in (_K.PLUS, _K.MINUS):
            continue
        meant = _meant(tokens, place)
        says = Contrast.WITHOUT if token.kind is _K.MINUS else Contrast.WITH
        if any(tokens[at].kind is _K.WEIGHTING for at in meant):
            last = place == len(tokens) - 1
            clear = last or token.text == "()" or (token.left and not token.right)
            yield says if clear else Contrast.UNCLEAR
        elif meant:
            yield says
        elif place == len(tokens) - 1 or token.text == "()":
            yield Contrast.UNCLEAR
        elif token.kind is _K.MINUS and not token.left and not token.right:
            near = tokens[max(place - 1, 0) : place + 2]
            if any(one.kind in (_K.AGENT, _K.HINT) for one in near) and not _governed(
                tokens, place
            ):
                yield Contrast.UNCLEAR


def _governed(tokens: Sequence[_Token], place: int) -> bool:
    """Say whether prepositions govern the agents beside the free dash at ``place``."""
    agents: set[int] = set()
    for at, token in enumerate(tokens):
        if token.kind in _PREPOSITIONS:
            agents |= _governs(tokens, at)[1]
    beside = {
        at
        for at in (place - 1, place + 1)
        if 0 <= at < len(tokens) and tokens[at].kind in (_K.AGENT, _K.HINT)
    }
    return beside <= agents
