"""Language codes of evaluation files, and the script that a text is written in.

Codes are ISO 639-1 (two letters) or 639-3 (three letters); the three-letter code of a language that has two letters
becomes the two-letter one, so that `deu-eng.tsv` and `test-de.tsv` share one row of a table.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

from dist_metaxlm.errors import UserError

_ISO_639_1_TEXT = """
aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo
es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg
ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn
no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn so sq sr ss st su sv sw
ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
"""
_THREE_TO_TWO_TEXT = """
abk=ab afr=af aka=ak amh=am ara=ar arb=ar asm=as ayr=ay aze=az azj=az bak=ba bam=bm bel=be ben=bn bod=bo bos=bs bre=br
bul=bg cat=ca ces=cs che=ce chv=cv cmn=zh cor=kw cos=co cym=cy dan=da deu=de div=dv dzo=dz ekk=et ell=el eng=en epo=eo
est=et eus=eu ewe=ee fao=fo fas=fa fij=fj fin=fi fra=fr fry=fy fuv=ff gaz=om gla=gd gle=ga glg=gl glv=gv grn=gn gug=gn
guj=gu hat=ht hau=ha hbs=sh heb=he hin=hi hrv=hr hun=hu hye=hy ibo=ig ido=io iku=iu ile=ie ina=ia ind=id isl=is ita=it
jav=jv jpn=ja kal=kl kan=kn kas=ks kat=ka kaz=kk khk=mn khm=km kik=ki kin=rw kir=ky kmr=ku knc=kr kon=kg kor=ko kur=ku
lao=lo lat=la lav=lv lim=li lin=ln lit=lt ltz=lb lug=lg lvs=lv mah=mh mal=ml mar=mr mkd=mk mlg=mg mlt=mt mon=mn mri=mi
msa=ms mya=my nde=nd nep=ne nld=nl nno=nn nob=nb npi=ne nya=ny oci=oc ori=or orm=om ory=or oss=os pan=pa pbt=ps pes=fa
plt=mg pol=pl por=pt pus=ps que=qu quy=qu roh=rm ron=ro run=rn rus=ru sag=sg san=sa sin=si slk=sk slv=sl sme=se smo=sm
sna=sn snd=sd som=so sot=st spa=es sqi=sq srd=sc srp=sr ssw=ss sun=su swa=sw swe=sv swh=sw tah=ty tam=ta tat=tt tel=te
tgk=tg tgl=tl tha=th tir=ti ton=to tsn=tn tso=ts tuk=tk tur=tr twi=tw uig=ug ukr=uk urd=ur uzb=uz uzn=uz ven=ve vie=vi
vol=vo wln=wa wol=wo xho=xh ydd=yi yid=yi yor=yo zho=zh zsm=ms zul=zu
"""
_THREE_ONLY_TEXT = """
ace acm acq aeb ajp als ang apc arc arq ars ary arz ast awa azb ban bar bat bbj bcl bem ber bho bjn bpy bug bxr cbk
ceb cha chr cjk ckb crh csb dik diq dsb dtp dyu egl ext fil fon frp frr fur gag gan gsw hak hbo hif hil hmn hne hsb
ilo jbo kaa kab kac kam kbp kea kmb koi krc ksh kzj lad lez lfn lij lmo lrc ltg lua luo lus luy mag mai max mhr min
mni moh mos mrj mwl myv mzn nah nap nds new nov nqo nso nus orv pag pam pap pcm pms pnb prs rap sah sat scn sco shi
shn swg szl taq tet tpi tum tyv tzl tzm umb vec vep vls war wuu xal xmf yue zea
"""
_TWO_LETTERS = frozenset(_ISO_639_1_TEXT.split())
_THREE_TO_TWO = dict(pair.split("=") for pair in _THREE_TO_TWO_TEXT.split())
_THREE_ONLY = frozenset(_THREE_ONLY_TEXT.split())
NAMES = {
    "arabic": "ar",
    "bengali": "bn",
    "english": "en",
    "finnish": "fi",
    "indonesian": "id",
    "japanese": "ja",
    "korean": "ko",
    "russian": "ru",
    "swahili": "sw",
    "telugu": "te",
    "thai": "th",
}
"""English names of languages, which TyDiQA uses in place of codes."""
_SCRIPT_NAMES = {
    "CJK": "Han",
    "HIRAGANA": "Kana",
    "KATAKANA": "Kana",
    "HANGUL": "Hangul",
    "OLD": "Other",
    "FULLWIDTH": "Latin",
    "MODIFIER": "Other",
    "HALFWIDTH": "Kana",
}
_SAMPLE = 20_000


def canonical(code: str, where: str) -> str:
    """The code of a language in every table: the two-letter one if it exists.

    A region (`pt-BR`) or a script is kept after a hyphen (FLORES writes `zho_Hans`); names of NAMES are codes too.

    Errors: UserError for an unknown code; `where` names its origin in the message.
    """
    base, _, region = code.replace("_", "-").partition("-")
    base = base.lower()
    known = NAMES.get(base) or _THREE_TO_TWO.get(base, base)
    if known not in _TWO_LETTERS and known not in _THREE_ONLY:
        raise UserError(f"{where}: {code!r} is no known language code; use ISO 639-1 such as 'de' or 639-3 such as 'deu'")
    return f"{known}-{region}" if region else known


def without_script(code: str) -> str:
    """`ja` of `ja-Jpan`; a region is kept."""
    base, _, subtag = code.partition("-")
    return base if len(subtag) == 4 else code


def dominant_script(texts: Iterable[str]) -> str:
    """The script of most letters: Latin, Cyrillic, Han, Kana (any share over a tenth, so Japanese is not Han), Thai, ..."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(script for character in text if (script := _script(character)))
        if sum(counts.values()) >= _SAMPLE:
            break
    if not counts:
        return "Other"
    if counts["Kana"] * 10 > sum(counts.values()):
        return "Kana"
    return min(counts, key=lambda script: (-counts[script], script))


@lru_cache(maxsize=4096)
def _script(character: str) -> str | None:
    if not character.isalpha():
        return None
    name = unicodedata.name(character, "").split(" ")[0]
    return _SCRIPT_NAMES.get(name, name.capitalize()) or "Other"
