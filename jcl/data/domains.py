"""Three domains of real text that need no network: English prose, Python code, German sentences."""

import functools
import importlib.util
import random
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from pydoc_data.topics import topics

from jcl import strict
from jcl.data.streams import Stream
from jcl.data.text import group, paragraphs, split_documents, text_task
from jcl.data.tokenization import BYTES, Tokenizer
from jcl.errors import InputError

_TEST_FRACTION = 0.1

# Pure Python, part of every CPython from 3.11 to 3.14, and in no package that Linux systems
# install on their own. Together about 400 kB.
_MODULES = (
    "argparse",
    "calendar",
    "collections",
    "csv",
    "fractions",
    "functools",
    "heapq",
    "json.decoder",
    "queue",
    "random",
    "shlex",
    "statistics",
    "textwrap",
)


def domains(*, length: int = 128, tokenizer: Tokenizer = BYTES, seed: int = 0) -> Stream:
    """Returns the stream "domains": python_docs, python_source, german_home.

    - python_docs: the language reference that Python ships for `help()`; paragraphs that occur in
      several topics are kept once, so that no test paragraph stands in the train part.
    - python_source: a fixed list of standard-library modules, cut between definitions.
    - german_home: spoken commands and questions, drawn from the German templates of the package
      home-assistant-intents; no template serves both the train and the test part.

    Each has 300 to 450 kB of train text and about a tenth of that to test. The same seed gives
    the same bytes in every process of one Python version; the first two domains follow the
    version of Python, and the hash of the task says so.

    Args:
        length: targets a block.
        tokenizer: text to ids.
        seed: of the splits and of the German sentences.

    Raises:
        InputError: home-assistant-intents or a standard-library module is not installed.
    """
    parts = {
        "python_docs": _split(_python_docs(), seed),
        "python_source": _split(_python_source(), seed),
        "german_home": _german_home(seed),
    }
    tasks = [
        text_task(name, train, test, tokenizer, length) for name, (train, test) in parts.items()
    ]
    return Stream("domains", tuple(tasks))


def _split(documents: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    # A document that occurs twice could otherwise be in both parts.
    return split_documents(list(dict.fromkeys(documents)), _TEST_FRACTION, seed)


def _python_docs() -> list[str]:
    documents, seen = [], set()
    # The reference repeats whole sections under several topics.
    for _, text in sorted(topics.items()):
        fresh = []
        for paragraph in paragraphs(text):
            words = " ".join(paragraph.split())
            if words not in seen:
                seen.add(words)
                fresh.append(paragraph)
        documents += group(fresh, "\n\n")
    return documents


def _python_source() -> list[str]:
    documents = []
    for module in _MODULES:
        try:
            specification = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            specification = None
        origin = specification.origin if specification else None
        if not origin or not origin.endswith(".py"):
            raise InputError(
                f"the source of the standard-library module '{module}' is not installed: "
                "use a Python with a complete standard library"
            )
        documents += group(_definitions(Path(origin).read_text(encoding="utf-8")), "")
    return documents


def _definitions(source: str) -> list[str]:
    """Returns `source` cut before classes, functions and methods; joined they are `source`."""
    pieces, previous = [""], ""
    for line in source.splitlines(keepends=True):
        starts = re.match(r"( {4})?(@|def |class |async def )", line)
        if starts and not previous.lstrip().startswith("@"):
            pieces.append("")
        pieces[-1] += line
        previous = line
    return [piece for piece in pieces if piece]


# The templates are a grammar to recognise speech with: an article may be any article. To write
# sentences that agree, nouns of our own carry their article: "⟨die⟩Stehlampe". The templates'
# article becomes _ARTICLE, and _agree() joins the two. All our nouns are feminine or neuter,
# where nominative and accusative are alike.
_ARTICLE = "⟨⟩"

_ROOMS = (
    "im Wohnzimmer|im Schlafzimmer|in der Küche|im Bad|im Flur|im Kinderzimmer|im Büro|"
    "im Esszimmer|im Gästezimmer|in der Garage|im Garten|auf der Terrasse|auf dem Balkon|"
    "im Arbeitszimmer|im Wintergarten|in der Waschküche|in der Werkstatt|im Hobbyraum"
)
_FLOORS = (
    "im Erdgeschoss|im Obergeschoss|im Dachgeschoss|im Keller|im ersten Stock|im zweiten Stock|"
    "auf dem Dachboden|im Untergeschoss"
)
_DEVICES = (
    "⟨die⟩Stehlampe|⟨die⟩Nachttischlampe|⟨die⟩Schreibtischlampe|⟨die⟩Lichterkette|"
    "⟨das⟩Deckenlicht|⟨das⟩Leselicht|⟨die⟩Kaffeemaschine|⟨die⟩Steckdose|⟨das⟩Radio|"
    "⟨die⟩Musikanlage|⟨die⟩Waschmaschine|⟨das⟩Garagentor|⟨die⟩Haustür|⟨die⟩Terrassentür|"
    "⟨das⟩Dachfenster|⟨das⟩Küchenfenster|⟨die⟩Markise|⟨die⟩Jalousie|⟨das⟩Rollo|⟨die⟩Klimaanlage|"
    "⟨das⟩Aquarium|⟨die⟩Spülmaschine|⟨die⟩Gartenbeleuchtung|⟨die⟩Wandlampe"
)
_LAMPS = (
    "⟨die⟩Stehlampe|⟨die⟩Nachttischlampe|⟨die⟩Schreibtischlampe|⟨die⟩Lichterkette|"
    "⟨das⟩Deckenlicht|⟨das⟩Leselicht|⟨die⟩Wandlampe|⟨die⟩Gartenbeleuchtung|⟨die⟩Leuchte|"
    "⟨das⟩Nachtlicht|⟨die⟩Hängelampe|⟨das⟩Spiegellicht"
)
_COVERS = (
    "⟨die⟩Markise|⟨die⟩Jalousie|⟨das⟩Rollo|⟨das⟩Garagentor|⟨die⟩Terrassentür|⟨das⟩Dachfenster|"
    "⟨das⟩Küchenfenster|⟨das⟩Hoftor|⟨die⟩Gardine|⟨die⟩Balkontür"
)
_PLAYERS = (
    "⟨die⟩Musikanlage|⟨das⟩Radio|⟨das⟩Küchenradio|⟨die⟩Stereoanlage|⟨das⟩Tablet|⟨die⟩Soundbar|"
    "⟨das⟩Fernsehgerät"
)
_PLACES = (
    "Berlin|Hamburg|München|Köln|Leipzig|Dresden|Wien|Zürich|Bremen|Stuttgart|Freiburg|Rostock|"
    "Graz|Basel"
)
_PEOPLE = (
    "Anna|Ben|Clara|David|Emma|Felix|Greta|Jonas|Lena|Max|Nina|Oskar|Paula|Tim|Oma|Opa|Mama|Papa"
)
_LISTS = "Garten|Urlaubs|Geschenke|Baumarkt|Party|Wochenend|Haushalts|Packl"
_ITEMS = (
    "Milch|Brot|Butter|zwei Gurken|Käse|Kaffee|Tomaten|Äpfel|Nudeln|Reis|Mehl|Zucker|sechs Eier|"
    "Joghurt|Bananen|Olivenöl|Zwiebeln|Kartoffeln|Salz|Waschmittel|Zahnpasta|Batterien|Müsli|"
    "eine Flasche Wein|Schokolade|Orangensaft|Spinat|Honig|Tee|Klopapier"
)
_CHORES = (
    "Rasen mähen|Fenster putzen|Blumen gießen|Müll rausbringen|Schrauben kaufen|Reifen wechseln|"
    "Keller aufräumen|Zelt packen|Kuchen backen|Oma anrufen|Hecke schneiden|Wand streichen|"
    "Sonnencreme|Blumenerde|Kerzen|Luftballons|Briefmarken|Geschenkpapier"
)
_MESSAGES = (
    "das Essen ist fertig|wir fahren in zehn Minuten los|der Besuch ist da|"
    "bitte kommt in die Küche|es gibt gleich Kuchen|der Film fängt an|die Post ist gekommen|"
    "wer hat meine Schlüssel gesehen|das Bad ist jetzt frei|ich gehe kurz einkaufen|"
    "die Pizza ist im Ofen|heute Abend kommen Gäste|räumt bitte eure Zimmer auf|"
    "der Hund muss noch raus|es ist Zeit zu schlafen|das Taxi wartet vor der Tür"
)
_SEARCHES = (
    "Klaviermusik|Jazz|Beethovens Neunte|Rockmusik aus den Achtzigern|Kinderlieder|"
    "Regengeräusche|Bachs Weihnachtsoratorium|Filmmusik|Volkslieder|Musik zum Einschlafen|"
    "Walzer|Blasmusik|Gitarrenmusik|Mozarts Kleine Nachtmusik|Opernarien|Swing|Chormusik|"
    "Musik von Bach"
)
_TIMER_NAMES = (
    "⟨die⟩Pizza|⟨die⟩Eier|⟨die⟩Wäsche|⟨die⟩Hausaufgaben|⟨die⟩Suppe|⟨die⟩Lasagne|⟨die⟩Nudeln|"
    "⟨die⟩Kartoffeln|⟨die⟩Sauna|⟨die⟩Pause|⟨die⟩Gymnastik|⟨die⟩Kekse|⟨die⟩Meditation|⟨die⟩Brezeln"
)
_COMMANDS = (
    "Licht aus|Licht an|Musik aus|Heizung aus|Jalousie runter|Rollo hoch|Ventilator an|"
    "Garagentor zu|Fernseher aus|Kaffeemaschine an"
)

# Lists of the package without values of their own, or with values that do not agree.
_WORDS = {
    "area": (
        "Küchen|Wohnzimmer|Schlafzimmer|Bad|Flur|Büro|Kinderzimmer|Esszimmer|Garagen|Garten|"
        "Terrassen|Werkstatt"
    ),
    "floor": "Keller|Erdgeschoss|Obergeschoss|Dachgeschoss|Untergeschoss",
    "cover_classes": (
        "⟨die⟩Markise|⟨die⟩Jalousie|⟨das⟩Rollo|⟨die⟩Gardine|⟨die⟩Tür|⟨das⟩Garagentor|⟨das⟩Tor|"
        "⟨das⟩Fenster|⟨die⟩Klappe|⟨die⟩Rollläden|⟨die⟩Fensterläden|⟨die⟩Vorhänge|⟨die⟩Jalousien"
    ),
    "cover_states": "offen|geöffnet|geschlossen|zu",
    "lock_states": "abgeschlossen|verschlossen|verriegelt|entriegelt|aufgeschlossen",
    "on_off_states": "an|aus|eingeschaltet|ausgeschaltet|angeschaltet|nicht an",
    "fan_mode": "Automatik|gering|mittel|hoch|oben|mittig|diffus",
    "lock_domains": "Schlösser|Türen|Tore",
    # Templates that ask for several things at once use this list in the place of cover_classes.
    "covers": "Markisen|Jalousien|Rollos|Türen|Fenster|Tore|Vorhänge|Klappen|Garagentore",
    "media_class_my_split": "Playlist|Wiedergabeliste",
    "media_class": "das Album|die Playlist|den Film|das Lied|den Song|den Podcast|die Serie",
    "message": _MESSAGES,
    "search_query": _SEARCHES,
    "shopping_list_item": _ITEMS,
    "timer_command": _COMMANDS,
    "timer_name": _TIMER_NAMES,
    "todo_list_item": _CHORES,
    "zone": "zu Hause|bei der Arbeit|in der Schule|im Verein|beim Sport",
}

# What {name} stands for: the first row whose pattern is found in "intent template" decides;
# without a row it is any device.
_NAMES = (
    ("^HassGetWeather", _PLACES),
    ("^HassList", _LISTS),
    (r"\{zone|^HassGetState (wo|wer)\b", _PEOPLE),
    (
        "<szene>|<skript>",
        "„Filmabend“|„Guten Morgen“|„Gute Nacht“|„Abendessen“|„Urlaub“|„Party“|„Lesen“",
    ),
    ("^Hass(Vacuum|LawnMower)", "Robi|Staubi|Mähfred|Rasenfee|Wischmopp"),
    ("^HassClimate", "⟨die⟩Klimaanlage|⟨die⟩Fußbodenheizung|⟨das⟩Thermostat|⟨die⟩Wärmepumpe"),
    ("sperren>|lock_", "⟨die⟩Haustür|⟨die⟩Kellertür|⟨das⟩Gartentor|⟨das⟩Garagentor|⟨die⟩Balkontür"),
    ("^HassFan", "⟨das⟩Gebläse|⟨die⟩Lüftung|⟨die⟩Abzugshaube|⟨die⟩Belüftung"),
    ("^Hass(Media|SetVolume)", _PLAYERS),
    ("^HassLightSet", _LAMPS),
    ("^HassSetPosition|cover_states|bs_open|öff|<schlie", _COVERS),
)

# Numbers that people say, where the package's range is wider.
_NUMBERS = {
    "temperature": range(15, 28),
    "timer_hours": range(1, 13),
    "timer_minutes": range(1, 60),
    "timer_seconds": range(1, 60),
}

# Rules of the package that mix forms, rewritten so that every choice agrees.
_RULES = {
    "artikel_bestimmt": _ARTICLE,
    "area": _ROOMS,
    "floor": _FLOORS,
    "name": "[" + _ARTICLE + " ]{name}",
    "hier": "hier|im Raum|in diesem Zimmer|hier im Zimmer",
    "alle": "alle|sämtliche|die ganzen",
    "alle_genitiv": "alle|sämtliche",
    "alle_lichter": "alle (Lichter|Lampen|Leuchten)|sämtliche (Lichter|Lampen)",
    "alle_luefter": "(alle|sämtliche) (Ventilatoren|Lüfter)",
    "lichter": "[die ](Lichter|Lampen|Leuchten)",
    "licht_ohne_artikel": "des Lichts|der Lampe|der Beleuchtung",
    "lichtes_mit_artikel": "des Lichts|der Lampe|der Beleuchtung",
    "luefter": "[den ](Ventilator|Lüfter)",
    "luefter_genitiv": "des Ventilators|des Lüfters",
    "irgend": "irgendwelche|einige",
    "are_any": "sind[ (irgendwelche|einige)]",
    "are_all": "sind (alle|sämtliche)",
    "welche": "welche",
    "wieviel": "wie viele",
    "possessivpronom_mein": "meine",
    "possessivpronom_unser": "unsere",
    "naechster": "nächsten",
    "vorheriger_letzter": "(vorherigen|letzten)",
    "song": "(Titel|Song|Track)",
    "wiederhole": "wiederhole",
    "von_dem": "vom",
    "zu_dem": "zum",
    "an": "an|ein",
    "schalten": "schalt[e]",
    "aktivieren": "aktivier[e]",
    "deaktivieren": "deaktivier[e]",
    "ausfuehren": "start[e]",
    "media_mute": "stummschalten|stumm stellen|den Ton (ausschalten|abschalten)",
    "media_unmute": "laut schalten|den Ton (einschalten|anschalten)",
    "media_type": "musik|fernsehsendung|sendung",
    "saugen": "(saug[e]|reinig[e]|putz[e]|wisch[e])",
    "entsperren": "(entsperre|öffne|entriegle)",
    "setze": "(setz[e]|änder[e]|veränder[e])",
    "heat_cool": "(aufheizen|beheizen|heizen|abkühlen|kühlen)",
    "leuchten_lassen": "(leuchten lassen|färben)",
    # Mishearings of a speech recogniser, which a writer would not make.
    "stt_fix_licht_an": "Licht",
    "stt_fix_aus_im": "aus",
    "stt_fix_setze": "setz",
    "stt_fix_schreib": "schreib",
    "stt_fix_machen": "mach",
    "stt_fix_fahren": "fahr",
}

# Changes to the templates, first to last: agreement in number, and one spelling of each word.
_TEMPLATE_FIXES = (
    (r"\((ss\|ß|ß\|ss)\)", "ß"),
    (r"eine Halbe Stunde\[n\]", "eine halbe Stunde"),
    (r"eine viertel Stunde\[n\]", "eine Viertelstunde"),
    (r"eine drei\[ \]viertel Stunde\[n\]", "eine Dreiviertelstunde"),
    (r"\[\(\(in\|auf\)\[ <artikel_bestimmt>\]\|im\|am\) \]\{zone", "{zone"),
    (
        r"\(den\|die\|meine\[n\]\|unsere\[n\]\) \{search_query\}\[ \|-\]",
        "(die|meine|unsere) {search_query}-",
    ),
    (r"\[ \(in\|im\)\] (<area>|<floor>)", r" \1"),
    (r"\[ \(zu\|zur(\|zum)?\)\]|\[ \(zu\|zum\)\]", " zu"),
    (r"\[ \(auf\|in\)\]", " auf"),
    (r"\(von\|auf\|aus\)", "(von|aus)"),
    (r"\[ \]\(springen", " (springen"),
    (r"\[ \]", ""),
    (r"ein\[en\] <song>", "einen <song>"),
    (r"\(\(das\|dieses\)\[ eine\]\|ein\) <song>", "(den|diesen) <song>"),
    (r"\[Einkaufs\]Liste", "Einkaufsliste"),
    (r"Warmweiß|Warm weiß", "warmweiß"),
    (r"max\[imal\[e\]\|imum\]", "maximale"),
    (r"min\[imal\[e\]\|imum\]", "minimale"),
    (r"Klima\[anlage\]", "Klimaanlage"),
    (r"\[ein\]gestellt", "eingestellt"),
    (r"(<area>|<floor>) \(Heizung\|Thermostat\|Klimaanlage\)", r"\1 die (Heizung|Klimaanlage)"),
    (r"\[?\((der|das|den)\|(der|das|den)\) ?\]?\s*(T|t)hermostat", "das Thermostat"),
    (r"\[<artikel_bestimmt> \]", "<artikel_bestimmt> "),
    (r"\[ <artikel_bestimmt>\]", " <artikel_bestimmt>"),
    (r"\((den|das|der)(\|(den|das|der))+\)", "den"),
    (r"\[( ?(die|das|den|einen|\((den|die|das|der|meine[mnr]?)(\|\w+)+\)) ?)\]", r"\1"),
    (r"\(<luefter>\|<luefter_genitiv>\)", "<luefter_genitiv>"),
    (
        r"\((<licht_ohne_artikel>\|)?<lichtes_mit_artikel>\|<lichter>\|<alle_lichter>\)",
        "<lichtes_mit_artikel>",
    ),
    (r"<licht>\|<lichtes_mit_artikel>\|", "<licht>|"),
    (r"<are_any> (<area>|<floor>|<hier>)", r"sind \1"),
    (r"\[ <irgend>\] (<area>|<floor>|<hier>)", r" \1"),
    (r"<hier>", "(<hier>)"),
    (r"\(die\|das\)", "die"),
    (r"hell\[ste\]", "hellste"),
    (r"<media_type>", "(<media_type>)"),
    (r"\(die\|das\|mein\|meine\)", "(die|meine)"),
    (r"Licht\[er\]", "Lichter"),
    (r"(Lampe|Leuchte|Tür|Steckdose)\[n\]", r"\1n"),
    (r"(Beleuchtung|Ventilator|Tür)\[en\]", r"\1en"),
    (r"\(ist\|sind(\|gibt es)?(\|stehen)?\)", "sind"),
    (r"\{(timer_name:name|area)\} Timer", r"{\1}-Timer"),
    (r"\[\(\|s\|-\)Liste\]", "-Liste"),
    (r"Liste \{name\}", "Liste „{name}“"),
    (r"\(\(an\|auf\)\[ dem\]\|am\)|\(<an>\|am\)|\(an\|am\)", "auf"),
    (r"Thermostat\[s\]", "Thermostats"),
    (r"\[%\| Prozent\]|\[ \(Prozent\|%\)\]", " Prozent"),
    (r"\[°\[C\]\| Grad\[ Celsius\]\]", " Grad[ Celsius]"),
    (r"\[\(K\| Kelvin\)\]", " Kelvin"),
    (r"(Stunde|Minute|Sekunde)\[n\]", r"\1n"),
    (r"Timer\[s\]", "Timers"),
)

# Words that the templates write small though they are nouns.
_NOUNS = (
    "temperatur|heizung|thermostat|klimaanlage|klimatisierung|klima|lautstärke|ton|musik|"
    "fernsehsendung|sendung|gerät|künstler|album|podcast|playlist|wiedergabeliste|kerze|"
    "kerzenlicht|stumm"
)
_QUESTION = (
    r"(wie|was|wann|wo|wer|ist|sind|hat|haben|welche[rsnm]?|gibt|steht|stehen|hörst|nimmst|"
    r"zeichnest|regnet|brennt|brennen|läuft|wird|auf wie viele|auf welche|befindet|kannst)\b"
)


def expand(
    template: str,
    draw: random.Random,
    *,
    rules: Mapping[str, str],
    fill: Callable[[str], str],
) -> str:
    """Returns one sentence of a template in the language of hassil, drawn by `draw`.

    `[a]` may be left out, `(a|b)` is one of its parts, `(a;b)` all of them in any order, `<rule>`
    is the template of that name in `rules`, and `{list}` or `{list:slot}` is `fill(list)`, again
    a template.

    Raises:
        InputError: a bracket is not closed or not opened, a rule is unknown, or rules refer to
            themselves.
    """

    def one(kind: str, content, depth: int) -> str:
        if kind == "text":
            return content
        if kind == "[":
            # With most of their parts the sentences read better than with half of them.
            return branch(content, depth) if draw.random() < 0.7 else ""
        if kind == "(":
            return branch(content, depth)
        if depth == 50:
            raise InputError(f"template '{template}': the rule '{content}' refers to itself")
        if kind == "{":
            return branch(_parse(fill(content.partition(":")[0])), depth + 1)
        if content not in rules:
            raise InputError(f"template '{template}': the rule '{content}' is unknown")
        return branch(_parse(rules[content]), depth + 1)

    def branch(content, depth: int) -> str:
        separator, parts = content
        if separator == ";":
            chosen = draw.sample(parts, len(parts))
            return " ".join(sequence(part, depth) for part in chosen)
        return sequence(draw.choice(parts), depth)

    def sequence(part, depth: int) -> str:
        return "".join([one(kind, content, depth) for kind, content in part])

    return branch(_parse(template), 0)


@functools.cache
def _parse(template: str):
    """Returns a template as `(separator, parts)`; a part is a list of `(kind, content)`.

    The kinds are "text", "<" and "{" with a string, "(" and "[" with such a pair.
    """
    closing = {"(": ")", "[": "]"}
    # The brackets that are open, each with its parts so far; the first is the template itself.
    stack = [("", "|", [[]])]
    for token in re.findall(r"<[^<>]*>|\{[^{}]*\}|[^][()<>{}|;]+|.", template):
        opened, separator, parts = stack[-1]
        if token in closing:
            stack.append((token, "|", [[]]))
        elif token in "|;":
            stack[-1] = (opened, token, parts)
            parts.append([])
        elif token in closing.values():
            if closing.get(opened) != token:
                raise InputError(f"template '{template}': a '{token}' closes no bracket")
            stack.pop()
            stack[-1][2][-1].append((opened, (separator, parts)))
        elif token in "<>{}":
            raise InputError(f"template '{template}': a '{token}' stands alone")
        elif token[0] in "<{":
            parts[-1].append((token[0], token[1:-1]))
        else:
            parts[-1].append(("text", token))
    if len(stack) > 1:
        raise InputError(f"template '{template}': a '{stack[-1][0]}' is not closed")
    return stack[0][1:]


def _german_home(seed: int) -> tuple[list[str], list[str]]:
    try:
        folder = resources.files("home_assistant_intents")
    except ModuleNotFoundError:
        raise InputError(
            'the domain german_home needs a package: pip install "jcl[demo]"'
        ) from None
    grammar = strict.parse_json((folder / "data" / "de.json").read_text(encoding="utf-8"))
    draw = random.Random(seed)
    rules = {
        name: _fix_template(text) for name, text in {**grammar["expansion_rules"], **_RULES}.items()
    }
    templates = sorted(
        {
            (intent, template)
            for intent, block in grammar["intents"].items()
            for data in block["data"]
            for template in data["sentences"]
            # A genitive of the device's name is the one form that our nouns do not serve.
            if "{name}[s]" not in template
        }
    )
    draw.shuffle(templates)
    test_count = round(len(templates) * _TEST_FRACTION)
    test = _sentences(templates[:test_count], draw, rules, grammar["lists"])
    train = _sentences(templates[test_count:], draw, rules, grammar["lists"])
    known = set(train)
    test = [sentence for sentence in test if sentence not in known]
    return _documents(train), _documents(test)


def _documents(sentences: Sequence[str], count: int = 20) -> list[str]:
    starts = range(0, len(sentences), count)
    return ["\n".join(sentences[start : start + count]) for start in starts]


def _sentences(templates, draw: random.Random, rules, lists, each: int = 7) -> list[str]:
    """Returns distinct sentences, `each` drawn a template, in a shuffled order."""
    sentences = {}
    for intent, template in templates:
        fill = functools.partial(_fill, names=_names(intent, template), lists=lists, draw=draw)
        if re.search("<which>|<how_many>|<are_any>|<are_all>", template):
            template = template.replace("{cover_classes:", "{covers:")
        text = _fix_template(template)
        for _ in range(each):
            sentences[_sentence(expand(text, draw, rules=rules, fill=fill))] = None
    result = list(sentences)
    draw.shuffle(result)
    return result


def _names(intent: str, template: str) -> str:
    """Returns what `{name}` may stand for in a template."""
    for pattern, names in _NAMES:
        if re.search(pattern, f"{intent} {template}"):
            return names
    return _DEVICES


def _fill(name: str, *, names: str, lists: Mapping, draw: random.Random) -> str:
    if name == "name":
        return draw.choice(names.split("|"))
    if name in _WORDS:
        return draw.choice(_WORDS[name].split("|"))
    if name in _NUMBERS:
        return str(draw.choice(_NUMBERS[name]))
    if name not in lists:
        raise InputError(
            f"home-assistant-intents uses the list '{name}', which it does not define: "
            'install the version that jcl is made for, pip install "jcl[demo]"'
        )
    if "range" in lists[name]:
        bounds = lists[name]["range"]
        return str(draw.randrange(bounds["from"], bounds["to"] + 1, bounds.get("step", 1)))
    value = draw.choice(lists[name]["values"])
    return _fix_template(value if isinstance(value, str) else value["in"])


@functools.cache
def _fix_template(template: str) -> str:
    for pattern, replacement in _TEMPLATE_FIXES:
        template = re.sub(pattern, replacement, template)
    return template


def _sentence(text: str) -> str:
    """Returns drawn text as a sentence: agreeing, in clean spelling, with its closing mark."""
    text = _agree(" ".join(text.split()))
    # Only the last part of "2 Stunden und 5 Minuten Timer" would get hyphens.
    single = r"(?<!Stunden )(?<!Minuten )(?<!und )\b(\d+) (Stunden|Minuten|Sekunden) Timer"
    text = re.sub(single, r"\1-\2-Timer", text)
    text = re.sub(r"\b1 (Stunde|Minute|Sekunde)n\b", r"1 \1", text)
    text = re.sub(rf"\b({_NOUNS})\b", lambda match: match[0].capitalize(), text)
    text = re.sub(r"\s+([.,!?])", r"\1", text).strip()
    mark = "?" if re.match(_QUESTION, text, re.IGNORECASE) else "."
    return text[0].upper() + text[1:] + mark


def _agree(text: str) -> str:
    """Returns `text` with the article of every marked noun in its case, or without it."""
    dative = {"die": "der", "das": "dem"}
    short = {"von dem": "vom", "in dem": "im", "an dem": "am", "zu dem": "zum", "zu der": "zur"}

    def after_preposition(match: re.Match) -> str:
        preposition = {"vom": "von", "zum": "zu", "am": "an"}.get(match[1], match[1])
        phrase = f"{preposition} {dative[match[2]]}"
        return f"{short.get(phrase, phrase)} "

    text = re.sub(rf"\b(namens|ihn) (?:(?:{_ARTICLE}|meine|unsere) ?)?⟨(die|das)⟩", r"\1 ", text)
    owned = r"(Lautstärke|Helligkeit|Position|Farbe|\w*Temperatur|Geschwindigkeit) (?=⟨)"
    text = re.sub(owned, r"\1 von ", text, flags=re.IGNORECASE)
    text = re.sub(
        rf"\b(von|vom|zu|zum|an|am|auf|bei|in)(?: dem)? (?:{_ARTICLE} ?)?⟨(die|das)⟩",
        after_preposition,
        text,
    )
    text = re.sub(rf"{_ARTICLE} ?⟨(die|das)⟩", r"\1 ", text)
    return re.sub(r"⟨(die|das)?⟩ ?", "", text)
