"""Words of captions by class, for tagging without a language model: closed classes whole, of others the frequent ones.

Verbs stand in their base form; `verb_forms` makes the others. What is in no list is judged by its ending (`rules`).
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DETERMINERS = _words(
    "a an the this that these those some any each every no another both all either neither several many few much more "
    "most other various multiple which what whose"
)
PRONOUNS = _words(
    "i you he she it we they me him us them who whom someone somebody something anyone anything everyone everything "
    "one himself herself itself themselves each-other"
)
POSSESSIVES = _words("his her its their my your our")
PREPOSITIONS = _words(
    "in on at of with by from to into onto over under near beside besides between behind above below through across "
    "along around against towards toward inside outside off up down beneath underneath upon within without during "
    "past about among amongst atop alongside for as like next out amid via per"
)
CONJUNCTIONS = _words("and or but nor yet")
SUBORDINATORS = _words("while because although if when where that than whether since until though so")
AUXILIARIES = _words(
    "is are was were be been being am has have had do does did can could will would shall should may might must ca wo"
)
PARTICLES = _words("not n't 's '")
NUMBERS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve dozen hundred thousand half first second third"
)
ADVERBS = _words(
    "very quite just too also there here away together back forward backward ahead apart outdoors indoors upside "
    "almost nearly still again already now then once only even well alone aside nearby somewhere everywhere high low "
    "fast hard soon never always often sometimes"
)
ADJECTIVES = _words(
    "red green blue yellow orange purple pink black white brown gray grey silver golden gold beige tan dark light "
    "bright pale colorful colourful blond blonde "
    "big large small little tiny huge giant tall short long wide narrow thick thin fat deep shallow high low full "
    "empty open closed old young new modern ancient vintage antique fresh ripe raw cooked rotten "
    "hot cold warm cool wet dry clean dirty muddy dusty snowy sunny cloudy rainy foggy windy rocky sandy grassy icy "
    "shiny dull smooth rough soft hard sharp flat round square rectangular curved straight bent crooked "
    "wooden woolen "
    "happy sad angry tired sleepy hungry busy quiet loud calm crowded lonely alone asleep awake beautiful pretty cute "
    "ugly nice lovely good bad great fine strange weird odd funny fancy plain simple messy neat tidy "
    "heavy light strong weak fast slow quick steep loose tight broken whole bare naked blank fluffy furry fuzzy hairy "
    "bald elderly male female adult wild tame stuffed striped spotted plaid checkered floral decorative electric "
    "electronic double single multiple different same similar various separate extra main rear left right "
    "upper lower central inner outer distant public private commercial industrial urban rural "
    "tropical wintry professional military american chinese japanese italian french mexican english asian british "
    "delicious healthy sweet sour salty spicy tasty frozen fried baked grilled sliced chopped mixed "
    "parked seated crowded dressed covered filled lit unlit unfinished unmade overcast"
)
VERBS = _words(
    "sit stand lie lay walk run ride drive fly sail swim surf ski skate skateboard snowboard jump leap climb crawl "
    "kneel lean hang rest sleep wake eat drink chew bite lick graze feed cook bake cut slice chop pour mix serve "
    "hold carry pull push drag lift throw toss catch kick hit swing bat pitch bowl play perform sing dance "
    "look watch stare gaze see face pose smile laugh cry talk speak chat listen read write draw paint type use "
    "wear put place set take get give hand show point reach touch grab pick pet hug kiss shake wave "
    "park cross pass stop wait turn move travel enter leave arrive approach follow chase race lead "
    "cover fill surround contain include feature display decorate line border overlook reflect "
    "make build fix repair clean wash brush dry open close attach connect wrap tie pack load unload "
    "work study teach practice practise try prepare attempt begin start help enjoy celebrate "
    "go come stay keep let sell buy shop board tow fish hunt herd gather stack pile float land roll slide fall grow "
    "blow spray splash spread shine peek sniff yawn stretch bend crouch squat balance hop skip trot gallop"
)
IRREGULAR_VERBS = {
    "sat": "sit", "stood": "stand", "lying": "lie", "lain": "lie", "laid": "lay", "ran": "run", "rode": "ride",
    "ridden": "ride", "drove": "drive", "driven": "drive", "flew": "fly", "flown": "fly", "ate": "eat", "eaten": "eat",
    "drank": "drink", "held": "hold", "threw": "throw", "thrown": "throw", "caught": "catch", "swung": "swing",
    "sang": "sing", "saw": "see", "seen": "see", "wore": "wear", "worn": "wear", "took": "take", "taken": "take",
    "got": "get", "gave": "give", "given": "give", "shown": "show", "shook": "shake", "led": "lead", "left": "leave",
    "made": "make", "built": "build", "tied": "tie", "tying": "tie", "went": "go", "gone": "go", "came": "come",
    "kept": "keep", "sold": "sell", "bought": "buy", "fell": "fall", "fallen": "fall", "grew": "grow", "grown": "grow",
    "blew": "blow", "blown": "blow", "slept": "sleep", "lit": "light", "hung": "hang", "drew": "draw", "drawn": "draw",
    "wrote": "write", "written": "write", "bent": "bend", "fed": "feed", "found": "find", "spoke": "speak",
    "dying": "die", "swam": "swim", "bit": "bite", "bitten": "bite", "lay": "lie",
}  # fmt: skip
NOUNS = _words(
    "building ceiling clothing wing string ring king thing evening morning wedding painting railing awning siding "
    "lighting crossing clearing dressing pudding frosting icing seating shed sled steed seed weed reed "
    "bus glass grass dress cross tennis canvas mattress octopus cactus campus lens gas christmas boss chess compass "
    "family fly jelly belly butterfly assembly animal metal pedal hospital sandal festival meal signal table vegetable "
    "cable motive olive detective dish fish bush brush radish native locomotive"
)
IRREGULAR_PLURALS = _words(
    "people men women children feet teeth geese mice sheep fish deer cattle policemen policewomen firemen snowmen "
    "businessmen sportsmen knives leaves loaves shelves wolves halves calves scarves"
)


def verb_forms(base: str) -> dict[str, str]:
    """The regular forms of a verb with their tags: rides VBZ, riding VBG, rode is irregular, ride VB."""
    vowels = "aeiou"
    sibilant = base.endswith(("s", "x", "z", "ch", "sh", "o"))
    consonant_y = base.endswith("y") and base[-2] not in vowels
    third = f"{base[:-1]}ies" if consonant_y else base + ("es" if sibilant else "s")
    stem = base[:-1] if base.endswith("e") and not base.endswith("ee") else base
    if base[-1] not in "aeiouwxy" and base[-2] in vowels and sum(letter in vowels for letter in base) == 1:
        stem = base + base[-1]  # running, sitting
    past = f"{base[:-1]}ied" if consonant_y else f"{stem}ed"
    return {base: "VB", third: "VBZ", f"{stem}ing": "VBG", past: "VBD"}


VERB_FORMS: dict[str, str] = {form: tag for base in sorted(VERBS) for form, tag in verb_forms(base).items()}
VERB_FORMS |= {form: "VBG" if form.endswith("ing") else "VBD" for form in IRREGULAR_VERBS}
"""Every form of a listed verb with its tag."""
