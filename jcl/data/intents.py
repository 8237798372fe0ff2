"""Commands to a home in ten languages, that need no network: classes, or languages, as tasks."""

import functools
import random
import re
from collections.abc import Mapping
from importlib import resources
from typing import Literal

from jcl import checks, strict
from jcl.data.domains import expand
from jcl.data.labelled_text import Encoder, TextStream, labelled_texts
from jcl.data.tables import Row
from jcl.errors import InputError

_TRAIN, _TEST = 60, 20

# Neighbours share a topic, as the domains of CLINC150 do, so that groups of three are ten topics.
# All are known to the package in all of the languages, with enough sentences in each.
_INTENTS = (
    "HassTurnOn", "HassTurnOff", "HassLightSet",
    "HassClimateGetTemperature", "HassClimateSetTemperature", "HassFanSetSpeed",
    "HassGetState", "HassSetPosition", "HassGetWeather",
    "HassMediaPause", "HassMediaUnpause", "HassMediaSearchAndPlay",
    "HassMediaNext", "HassMediaPrevious", "HassMediaPlayerMute",
    "HassMediaPlayerUnmute", "HassSetVolume", "HassSetVolumeRelative",
    "HassListAddItem", "HassListCompleteItem", "HassListRemoveItem",
    "HassShoppingListAddItem", "HassVacuumStart", "HassVacuumReturnToBase",
    "HassStartTimer", "HassCancelTimer", "HassIncreaseTimer",
    "HassDecreaseTimer", "HassPauseTimer", "HassUnpauseTimer",
)  # fmt: skip

# What the package leaves open, by language. Its templates are a grammar to recognise speech with:
# an article may be any article, and what is drawn from them is not always good grammar.
_WORDS = {
    "en": {
        "area": "kitchen|living room|bedroom|bathroom|hall|office|garage|nursery",
        "floor": "ground|first|second|top",
        "name": "desk lamp|coffee machine|front door|ceiling light|heater|garden lights|blinds",
        "player": "radio|television|kitchen speaker|tablet",
        "list": "garden|holiday|party|hardware|weekend",
        "item": "milk|bread|butter|two cucumbers|coffee|apples|rice|soap|eggs|cheese|honey|tea",
        "chore": "mow the lawn|clean the windows|call grandma|wash the car|bake a cake",
        "search": "piano music|jazz|rock ballads|rain sounds|film music|a lullaby",
        "timer": "pizza|eggs|laundry|homework|soup",
        "command": "turn off the lights|open the garage|stop the music|start the heater",
        "zone": "school|work|the gym",
    },
    "de": {
        "area": "Küche|Wohnzimmer|Schlafzimmer|Bad|Flur|Büro|Garage|Kinderzimmer",
        "floor": "Erdgeschoss|Obergeschoss|Keller|Dachgeschoss",
        "name": "Stehlampe|Kaffeemaschine|Haustür|Deckenlicht|Heizung|Lichterkette|Markise",
        "player": "Radio|Fernseher|Lautsprecher|Tablet",
        "list": "Garten|Urlaub|Party|Baumarkt|Wochenende",
        "item": "Milch|Brot|Butter|zwei Gurken|Kaffee|Äpfel|Reis|Batterien|Seife|sechs Eier",
        "chore": "Rasen mähen|Fenster putzen|Oma anrufen|Auto waschen|Kuchen backen",
        "search": "Klaviermusik|Jazz|Kinderlieder|Regengeräusche|Filmmusik|Walzer",
        "timer": "Pizza|Eier|Wäsche|Hausaufgaben|Suppe",
        "command": "Licht aus|Garage auf|Musik aus|Heizung an",
        "zone": "Schule|Arbeit|Sport",
    },
    "nl": {
        "area": "keuken|woonkamer|slaapkamer|badkamer|gang|kantoor|garage|kinderkamer",
        "floor": "begane grond|eerste|zolder|kelder",
        "name": "bureaulamp|koffiemachine|voordeur|plafondlamp|verwarming|tuinlampen|jaloezie",
        "player": "radio|televisie|luidspreker|tablet",
        "list": "tuin|vakantie|feest|bouwmarkt|weekend",
        "item": "melk|brood|boter|twee komkommers|koffie|appels|rijst|batterijen|zeep|zes eieren",
        "chore": "gras maaien|ramen wassen|oma bellen|auto wassen|taart bakken",
        "search": "pianomuziek|jazz|kinderliedjes|regengeluiden|filmmuziek|een wals",
        "timer": "pizza|eieren|was|huiswerk|soep",
        "command": "licht uit|garage open|muziek uit|verwarming aan",
        "zone": "school|werk|sportschool",
    },
    "es": {
        "area": "cocina|salón|dormitorio|baño|pasillo|despacho|garaje|terraza",
        "floor": "planta baja|primera planta|segunda planta|buhardilla",
        "name": "lámpara|cafetera|puerta|plafón|calefacción|guirnalda|persiana",
        "player": "radio|televisor|altavoz|tableta",
        "list": "jardín|vacaciones|fiesta|ferretería|tareas",
        "item": "leche|pan|mantequilla|dos pepinos|café|manzanas|arroz|pilas|jabón|seis huevos",
        "chore": "cortar el césped|limpiar ventanas|llamar a la abuela|lavar el coche|hornear",
        "search": "música de piano|jazz|canciones infantiles|sonido de lluvia|boleros|flamenco",
        "timer": "pizza|huevos|colada|deberes|sopa",
        "command": "apaga la luz|abre el garaje|para la música|enciende la calefacción",
        "zone": "escuela|trabajo|gimnasio",
    },
    "it": {
        "area": "cucina|soggiorno|camera|bagno|corridoio|ufficio|garage|terrazza",
        "floor": "piano terra|primo piano|secondo piano|mansarda",
        "name": "lampada|macchina del caffè|porta|plafoniera|stufa|luci del giardino|tapparella",
        "player": "radio|televisore|altoparlante|tablet",
        "list": "giardino|vacanze|festa|ferramenta|faccende",
        "item": "latte|pane|burro|due cetrioli|caffè|mele|riso|pile|sapone|sei uova",
        "chore": "tagliare l'erba|lavare i vetri|chiamare la nonna|lavare l'auto|fare la torta",
        "search": "musica per pianoforte|jazz|canzoni per bambini|suoni di pioggia|opera|un valzer",
        "timer": "pizza|uova|bucato|compiti|minestra",
        "command": "spegni la luce|apri il garage|ferma la musica|accendi la stufa",
        "zone": "scuola|lavoro|palestra",
    },
    "fr": {
        "area": "cuisine|salon|chambre|salle de bain|couloir|bureau|garage|terrasse",
        "floor": "rez-de-chaussée|premier étage|grenier|sous-sol",
        "name": "lampe|cafetière|porte|plafonnier|chauffage|guirlande|store",
        "player": "radio|télévision|enceinte|tablette",
        "list": "jardin|vacances|fête|bricolage|corvées",
        "item": "lait|pain|beurre|deux concombres|café|pommes|riz|piles|savon|six œufs",
        "chore": "tondre la pelouse|laver les vitres|appeler mamie|laver la voiture|cuisiner",
        "search": "musique de piano|jazz|chansons pour enfants|bruits de pluie|opéra|une valse",
        "timer": "pizza|œufs|lessive|devoirs|soupe",
        "command": "éteins la lumière|ouvre le garage|arrête la musique|allume le chauffage",
        "zone": "école|travail|salle de sport",
    },
    "pl": {
        "area": "kuchnia|salon|sypialnia|łazienka|korytarz|biuro|garaż|taras",
        "floor": "parter|pierwsze piętro|poddasze|piwnica",
        "name": "lampka|ekspres|brama|plafon|grzejnik|girlanda|roleta",
        "player": "radio|telewizor|głośnik|tablet",
        "list": "ogród|wakacje|impreza|remont|obowiązki",
        "item": "mleko|chleb|masło|dwa ogórki|kawa|jabłka|ryż|mydło|jajka|ser|miód|herbata",
        "chore": "skosić trawnik|umyć okna|zadzwonić do babci|umyć auto|upiec ciasto",
        "search": "muzyka fortepianowa|jazz|piosenki dla dzieci|odgłosy deszczu|opera|walc",
        "timer": "pizza|jajka|pranie|lekcje|zupa",
        "command": "zgaś światło|otwórz garaż|wyłącz muzykę|włącz ogrzewanie",
        "zone": "szkoła|praca|siłownia",
    },
    "hu": {
        "area": "konyha|nappali|hálószoba|fürdő|folyosó|iroda|garázs|terasz",
        "floor": "földszint|első emelet|padlás|pince",
        "name": "asztali lámpa|kávéfőző|bejárati ajtó|csillár|fűtés|fényfüzér|redőny",
        "player": "rádió|tévé|hangszóró|táblagép",
        "list": "kert|nyaralás|buli|barkács|házimunka",
        "item": "tej|kenyér|vaj|két uborka|kávé|alma|rizs|elem|szappan|hat tojás",
        "chore": "fűnyírás|ablakmosás|nagymama felhívása|autómosás|süteménysütés",
        "search": "zongorazene|jazz|gyerekdalok|esőhangok|filmzene|keringő",
        "timer": "pizza|tojás|mosás|házi feladat|leves",
        "command": "kapcsold le a lámpát|nyisd ki a garázst|állítsd le a zenét|fűts be",
        "zone": "iskola|munkahely|edzőterem",
    },
    "pt-BR": {
        "area": "cozinha|sala|quarto|banheiro|corredor|escritório|garagem|varanda",
        "floor": "térreo|primeiro andar|segundo andar|sótão",
        "name": "luminária|cafeteira|porta|lustre|aquecedor|pisca-pisca|persiana",
        "player": "rádio|televisão|caixa de som|tablet",
        "list": "jardim|férias|festa|ferragens|tarefas",
        "item": "leite|pão|manteiga|dois pepinos|café|maçãs|arroz|pilhas|sabão|seis ovos",
        "chore": "cortar a grama|limpar as janelas|ligar para a vovó|lavar o carro|assar um bolo",
        "search": "música de piano|jazz|canções infantis|sons de chuva|samba|uma valsa",
        "timer": "pizza|ovos|roupa|lição|sopa",
        "command": "apague a luz|abra a garagem|pare a música|ligue o aquecedor",
        "zone": "escola|trabalho|academia",
    },
    "ro": {
        "area": "bucătărie|sufragerie|dormitor|baie|hol|birou|garaj|terasă",
        "floor": "parter|etajul întâi|mansardă|subsol",
        "name": "veioză|cafetieră|ușă|plafonieră|calorifer|ghirlandă|jaluzea",
        "player": "radio|televizor|boxă|tabletă",
        "list": "grădină|vacanță|petrecere|bricolaj|treburi",
        "item": "lapte|pâine|unt|doi castraveți|cafea|mere|orez|baterii|săpun|șase ouă",
        "chore": "tuns iarba|spălat geamuri|sunat bunica|spălat mașina|copt prăjitură",
        "search": "muzică de pian|jazz|cântece pentru copii|sunet de ploaie|operă|un vals",
        "timer": "pizza|ouă|rufe|teme|supă",
        "command": "stinge lumina|deschide garajul|oprește muzica|pornește căldura",
        "zone": "școală|serviciu|sală",
    },
}
_LISTS = {  # list of the package: row of _WORDS
    "area": "area", "floor": "floor", "name": "name", "zone": "zone",
    "search_query": "search", "timer_name": "timer", "timer_command": "command",
    "shopping_list_item": "item", "todo_list_item": "chore",
}  # fmt: skip
_NAMES = {  # {name} in intents that match: a row of _WORDS, or the words
    "HassList": "list",
    "HassMedia|HassSetVolume": "player",
    "HassVacuum": "Rosie|Dusty|Max|Bella|Robi|Turbo|Nemo|Luna|Oscar|Fred|Ziggy|Coco",
    "HassGetWeather": "Berlin|Paris|Madrid|London|Roma|Lisboa|Budapest|Oslo|Zagreb|Porto|Bern",
}  # fmt: skip


def intents(
    *,
    tokenizer: Encoder,
    scenario: Literal["class", "domain"] = "class",
    tasks: int = 10,
    length: int | None = None,
    seed: int = 0,
) -> TextStream:
    """Commands to a home, drawn from the package home-assistant-intents; nothing is downloaded.

    class: 30 English intents in `tasks` groups. domain: the same 30 intents in every task, each
    task a language: English, German, Dutch, Spanish, Italian, French, Polish, Hungarian,
    Portuguese, Romanian.

    60 sentences of an intent (in a language) are learned and 20 tested. No two are the same, but
    they share templates: `set the lamp to 20 percent` may be learned and `set the lamp to 30
    percent` tested. The words that the package leaves open, names of rooms or devices, are our
    own. The same seed gives the same sentences in every process.

    Args:
        tokenizer: text to ids.
        scenario: which.
        tasks: class: their number, which divides 30. domain: how many of the languages, 2 to 10.
        length: as in `jcl.data.text_classification`.
        seed: of the sentences.

    Raises:
        InputError: the package is not installed, or an argument is out of its range.

    >>> from jcl.data import ByteTokenizer, intents
    >>> stream = intents(tokenizer=ByteTokenizer())
    >>> len(stream.tasks), stream.classes, stream.tasks[0].name
    (10, 30, 'TurnOn, TurnOff, LightSet')
    """
    checks.one_of("intents", "scenario", scenario, ("class", "domain"))
    tasks = checks.whole("intents", "tasks", tasks)
    seed = checks.whole("intents", "seed", seed, least=0)
    labels = [name.removeprefix("Hass") for name in _INTENTS]
    if scenario == "class":
        if len(labels) % tasks:
            raise InputError(f"intents(tasks={tasks}): a divisor of the {len(labels)} intents")
        size = len(labels) // tasks
        chunks = [labels[start : start + size] for start in range(0, len(labels), size)]
        groups = {", ".join(chunk[:3]) + " ..." * (size > 3): chunk for chunk in chunks}
        home = {label: task for task, chunk in groups.items() for label in chunk}
        languages = ["en"]
    else:
        if not 2 <= tasks <= len(_WORDS):
            raise InputError(f"intents(tasks={tasks}): a number of languages, 2 to {len(_WORDS)}")
        languages, home = list(_WORDS)[:tasks], {}
        groups = dict.fromkeys(languages, labels)
    train, test = [], []
    for language in languages:
        for label, sentences in _sentences(language, seed).items():
            task = home.get(label, language)
            place = f"home-assistant-intents, {language}, {label}"
            rows = [Row(sentence, label, task, "", place) for sentence in sentences]
            train += rows[:_TRAIN]
            test += rows[_TRAIN:]
    return labelled_texts(
        "intents", train, test, groups, labels, scenario, tokenizer, length, positions=False
    )


def _sentences(language: str, seed: int) -> dict[str, list[str]]:
    """Returns {label: distinct sentences}; none stands under two labels."""
    try:
        folder = resources.files("home_assistant_intents")
    except ModuleNotFoundError:
        raise InputError('intents needs a package: pip install "jcl[demo]"') from None
    grammar = strict.parse_json((folder / "data" / f"{language}.json").read_text(encoding="utf-8"))
    seen: set[str] = set()
    found = {}
    # Those with the fewest sentences choose first.
    templates = {name: _templates(grammar["intents"], name) for name in _INTENTS}
    for name in sorted(_INTENTS, key=lambda name: len(templates[name])):
        draw = random.Random(f"{seed} {language} {name}")
        fill = functools.partial(
            _fill, name=name, words=_WORDS[language], lists=grammar["lists"], draw=draw
        )
        own = []
        for _ in range(100 * (_TRAIN + _TEST) if templates[name] else 0):
            template = draw.choice(templates[name])
            sentence = expand(template, draw, rules=grammar["expansion_rules"], fill=fill)
            sentence = " ".join(sentence.split())
            if sentence and sentence.casefold() not in seen:
                seen.add(sentence.casefold())
                own.append(sentence)
            if len(own) == _TRAIN + _TEST:
                break
        else:
            raise InputError(
                f"home-assistant-intents gives {len(own)} sentences of {name} in '{language}', "
                f"fewer than {_TRAIN + _TEST}: install the version that jcl is made for, "
                'pip install "jcl[demo]"'
            )
        found[name.removeprefix("Hass")] = own
    return {name.removeprefix("Hass"): found[name.removeprefix("Hass")] for name in _INTENTS}


def _templates(every: Mapping, name: str) -> list[str]:
    blocks = every.get(name, {"data": []})["data"]
    return sorted({sentence for block in blocks for sentence in block["sentences"]})


def _fill(
    slot: str, *, name: str, words: Mapping[str, str], lists: Mapping, draw: random.Random
) -> str:
    if slot in _LISTS:
        row = _LISTS[slot]
        if slot == "name":
            row = next((row for intent, row in _NAMES.items() if re.match(intent, name)), row)
        return draw.choice(words.get(row, row).split("|"))
    if slot not in lists:
        raise InputError(
            f"home-assistant-intents uses the list '{slot}', which it does not define: "
            'install the version that jcl is made for, pip install "jcl[demo]"'
        )
    if "range" in lists[slot]:
        bounds = lists[slot]["range"]
        return str(draw.randrange(bounds["from"], bounds["to"] + 1, bounds.get("step", 1)))
    value = draw.choice(lists[slot]["values"])
    return value if isinstance(value, str) else value["in"]
