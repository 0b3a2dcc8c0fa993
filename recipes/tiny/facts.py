"""Rows about plain facts, for the built-in judge to learn that a wrong answer is worse than a
right one, however it is worded: `python recipes/tiny/facts.py > facts.jsonl`.

Each row has a question, answers that differ in one fact, and a judgment with its reason; `jlm
data` and `jlm train` read them. The questions of samples/ are not among them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

RIGHT, WRONG = (8, 9, 10), (1, 2, 3)
_SAME = 0.06  # share of pairs whose answers are equally right or wrong
_TWINS = 0.05  # share of pairs that are one answer twice
_REPEATED = 0.15  # share of wrong answers that say a word of the right one again and again
_ROUNDS = 3  # times that each fact is asked about


@dataclass(frozen=True)
class Relation:
    """Questions and answer sentences with places for the two sides of its pairs."""

    questions: Sequence[str]
    sentences: Sequence[str]
    pairs: dict[str, str]


@dataclass(frozen=True)
class Fact:
    """A question, its right value, wrong ones, and sentences that state a value."""

    question: str
    sentences: tuple[str, ...]
    right: str
    wrong: tuple[str, ...]


def _pairs(text: str) -> dict[str, str]:
    """`key value, key value`: a value is one word; underscores stand for spaces."""
    found = {}
    for part in text.replace("\n", " ").split(","):
        key, value = part.split()
        found[key.replace("_", " ")] = value.replace("_", " ")
    return found


RELATIONS = (
    Relation(
        ("What is the capital of {a}?", "Name the capital city of {a}.", "{a}'s capital is what?"),
        ("{b}", "The capital of {a} is {b}.", "It is {b}.", "{b} is the capital city of {a}."),
        _pairs(
            """France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, Japan
            Tokyo, China Beijing, India New_Delhi, Russia Moscow, Egypt Cairo, Kenya Nairobi,
            Canada Ottawa, Mexico Mexico_City, Brazil Brasília, Argentina Buenos_Aires, Chile
            Santiago, Peru Lima, Colombia Bogotá, Cuba Havana, Greece Athens, Turkey Ankara, Iran
            Tehran, Iraq Baghdad, Israel Jerusalem, Thailand Bangkok, Vietnam Hanoi, Indonesia
            Jakarta, Philippines Manila, South_Korea Seoul, Sweden Stockholm, Norway Oslo, Denmark
            Copenhagen, Finland Helsinki, Poland Warsaw, Austria Vienna, Hungary Budapest,
            Ireland Dublin, Scotland Edinburgh, Belgium Brussels, Netherlands Amsterdam,
            Switzerland Bern, Ukraine Kyiv, Romania Bucharest, Bulgaria Sofia, Morocco Rabat,
            Nigeria Abuja, Ethiopia Addis_Ababa, Ghana Accra, Nepal Kathmandu, Pakistan Islamabad,
            Afghanistan Kabul, New_Zealand Wellington, Iceland Reykjavik, Lebanon Beirut"""
        ),
    ),
    Relation(
        ("Which continent is {a} in?", "On what continent does {a} lie?"),
        ("{b}", "{a} is in {b}.", "{a} lies on the continent of {b}."),
        _pairs(
            """France Europe, Japan Asia, Kenya Africa, Brazil South_America, Canada
            North_America, Egypt Africa, India Asia, Peru South_America, Poland Europe, Mexico
            North_America, Nigeria Africa, Thailand Asia, Chile South_America, Norway Europe,
            Vietnam Asia, Morocco Africa, Portugal Europe, Colombia South_America"""
        ),
    ),
    Relation(
        (
            'What is the opposite of "{a}"?',
            "Give an antonym of {a}.",
            "Name a word that means the opposite of {a}.",
        ),
        ("{b}", "The opposite of {a} is {b}.", 'An antonym of "{a}" is "{b}".'),
        _pairs(
            """hot cold, big small, fast slow, happy sad, light dark, old young, rich poor, strong
            weak, early late, hard soft, high low, wet dry, full empty, open closed, near far, loud
            quiet, good bad, clean dirty, long short, thick thin, brave cowardly, cheap expensive,
            heavy light, sharp blunt, sweet sour, deep shallow, wide narrow, tight loose, true
            false, begin end, win lose, buy sell, love hate, arrive depart, accept refuse"""
        ),
    ),
    Relation(
        ("What is the chemical symbol of {a}?", "Which symbol stands for {a} in chemistry?"),
        ("{b}", "The symbol of {a} is {b}.", "{a} is written as {b}."),
        _pairs(
            """hydrogen H, oxygen O, carbon C, nitrogen N, iron Fe, gold Au, silver Ag, copper Cu,
            sodium Na, potassium K, calcium Ca, lead Pb, tin Sn, zinc Zn, helium He, neon Ne,
            chlorine Cl, sulfur S, mercury Hg, aluminium Al, magnesium Mg, uranium U"""
        ),
    ),
    Relation(
        ("Who wrote {a}?", "Who is the author of {a}?", "{a} was written by whom?"),
        ("{b}", "{b} wrote {a}.", "{a} was written by {b}.", "The author is {b}."),
        _pairs(
            """Hamlet William_Shakespeare, Pride_and_Prejudice Jane_Austen, Oliver_Twist
            Charles_Dickens, War_and_Peace Leo_Tolstoy, The_Hobbit J.R.R._Tolkien, 1984
            George_Orwell, Moby-Dick Herman_Melville, Don_Quixote Miguel_de_Cervantes,
            The_Odyssey Homer, Faust Johann_Wolfgang_von_Goethe, Frankenstein Mary_Shelley,
            Dracula Bram_Stoker, Ulysses James_Joyce, The_Trial Franz_Kafka,
            Crime_and_Punishment Fyodor_Dostoevsky, Les_Misérables Victor_Hugo,
            The_Great_Gatsby F._Scott_Fitzgerald, Jane_Eyre Charlotte_Brontë"""
        ),
    ),
    Relation(
        ("What do you call a young {a}?", "What is the baby of a {a} called?"),
        ("{b}", "A young {a} is called a {b}.", "It is called a {b}."),
        _pairs(
            """dog puppy, cat kitten, cow calf, horse foal, sheep lamb, goat kid, pig piglet, bear
            cub, deer fawn, goose gosling, duck duckling, kangaroo joey, hen chick, frog tadpole,
            swan cygnet"""
        ),
    ),
    Relation(
        ('Translate "{a}" into French.', "What is the French word for {a}?"),
        ("{b}", 'In French, {a} is "{b}".', "The French word for {a} is {b}."),
        _pairs(
            """house maison, water eau, bread pain, dog chien, cat chat, book livre, red rouge, tree
            arbre, night nuit, milk lait, cheese fromage, friend ami, school école, sun soleil,
            moon lune, hand main, door porte, window fenêtre, thanks merci"""
        ),
    ),
    Relation(
        ('Translate "{a}" into Spanish.', "How do you say {a} in Spanish?"),
        ("{b}", 'In Spanish, {a} is "{b}".', 'You say "{b}".'),
        _pairs(
            """house casa, water agua, bread pan, dog perro, cat gato, book libro, red rojo, tree
            árbol, night noche, milk leche, cheese queso, friend amigo, school escuela, sun sol,
            moon luna, hand mano, door puerta, window ventana, thanks gracias"""
        ),
    ),
    Relation(
        ('What is the past tense of "{a}"?', "Put the verb {a} into the past tense."),
        ("{b}", "The past tense of {a} is {b}.", '"{b}"'),
        _pairs(
            """go went, eat ate, see saw, take took, write wrote, run ran, buy bought, think
            thought, sing sang, swim swam, bring brought, teach taught, fly flew, know knew, drink
            drank, give gave, fall fell, break broke, speak spoke, choose chose, drive drove"""
        ),
    ),
    Relation(
        ('What is the plural of "{a}"?', "Write the plural form of {a}."),
        ("{b}", "The plural of {a} is {b}.", '"{b}"'),
        _pairs(
            """child children, mouse mice, foot feet, tooth teeth, man men, goose geese, leaf
            leaves, wolf wolves, knife knives, city cities, baby babies, box boxes, person people,
            ox oxen, bus buses, potato potatoes"""
        ),
    ),
    Relation(
        ("What language is spoken in {a}?", "Name the main language of {a}."),
        ("{b}", "People in {a} speak {b}.", "The main language of {a} is {b}."),
        _pairs(
            """Brazil Portuguese, Mexico Spanish, Austria German, Egypt Arabic, Japan Japanese,
            Iran Persian, Israel Hebrew, China Chinese, Italy Italian, Greece Greek, Poland Polish,
            Sweden Swedish, Thailand Thai, Turkey Turkish, Hungary Hungarian, Argentina Spanish"""
        ),
    ),
    Relation(
        (
            "What kind of thing is a {a}?",
            "Classify: {a}. Is it an animal, a plant, a tool, a food, a vehicle or an instrument?",
        ),
        ("{b}", "A {a} is a kind of {b}.", "It belongs to the category: {b}."),
        _pairs(
            """hammer tool, violin instrument, tiger animal, tulip plant, bicycle vehicle, pizza
            food, saw tool, trumpet instrument, dolphin animal, cactus plant, lorry vehicle, soup
            food, screwdriver tool, piano instrument, sparrow animal, fern plant, helicopter
            vehicle, cheese food, drum instrument, spider animal, tram vehicle, sandwich food"""
        ),
    ),
    Relation(
        ("Is the sentence positive or negative? {a}", "Classify the sentiment: {a}"),
        ("{b}", "The sentence is {b}.", "Its sentiment is {b}."),
        {
            "The food was wonderful.": "positive",
            "I will never come back to this hotel.": "negative",
            "What a beautiful day!": "positive",
            "The film bored me to tears.": "negative",
            "She is the kindest teacher I have had.": "positive",
            "My new phone broke after two days.": "negative",
            "We loved every minute of the trip.": "positive",
            "The service was slow and rude.": "negative",
            "This book changed my life for the better.": "positive",
            "The room smelled awful.": "negative",
        },
    ),
    Relation(
        ("{a}", "Answer briefly: {a}"),
        ("{b}", "It is {b}.", "The answer is {b}."),
        {
            "How many days are in a week?": "7",
            "How many months are in a year?": "12",
            "How many legs does a spider have?": "8",
            "How many legs does an insect have?": "6",
            "How many sides does a triangle have?": "3",
            "How many sides does a hexagon have?": "6",
            "How many minutes are in an hour?": "60",
            "How many hours are in a day?": "24",
            "How many seconds are in a minute?": "60",
            "How many letters are in the English alphabet?": "26",
            "How many centimetres are in a metre?": "100",
            "How many grams are in a kilogram?": "1000",
            "At what temperature in degrees Celsius does water freeze?": "0",
            "How many wheels does a bicycle have?": "2",
            "How many players has a football team on the field?": "11",
            "How many strings does a violin have?": "4",
            "How many degrees are in a right angle?": "90",
            "How many years are in a century?": "100",
            "In which year did the Second World War end?": "1945",
            "In which year did people first land on the Moon?": "1969",
        },
    ),
    Relation(
        ("{a}", "Answer in a few words: {a}"),
        ("{b}", "It is {b}.", "The answer is {b}."),
        {
            "Which planet is closest to the Sun?": "Mercury",
            "Which planet is known as the red planet?": "Mars",
            "What is the largest planet of the solar system?": "Jupiter",
            "Which planet has the brightest rings?": "Saturn",
            "On which planet do we live?": "Earth",
            "What colour are emeralds?": "green",
            "What colour is a ripe banana?": "yellow",
            "What colour is fresh snow?": "white",
            "What colour is the sky on a clear day?": "blue",
            "What colour is coal?": "black",
            "Which gas do plants take up from the air?": "carbon dioxide",
            "Which gas do people need to breathe?": "oxygen",
            "Which is the largest ocean?": "the Pacific Ocean",
            "Which animal is the largest on Earth?": "the blue whale",
            "Which metal is liquid at room temperature?": "mercury",
            "Which organ pumps blood through the body?": "the heart",
            "Which season follows winter?": "spring",
            "Which month comes after March?": "April",
            "Which day comes before Friday?": "Thursday",
            "What do bees make?": "honey",
            "What is frozen water called?": "ice",
        },
    ),
)


def of_relation(relation: Relation, draw: random.Random) -> Iterator[Fact]:
    values = sorted(set(relation.pairs.values()))
    for a, b in relation.pairs.items():
        question = draw.choice(relation.questions).format(a=a)
        others = [value for value in values if value != b]
        wrong = draw.sample(others, min(3, len(others)))
        yield Fact(
            question, tuple(s.replace("{a}", a) for s in relation.sentences), b, tuple(wrong)
        )


def of_sums(draw: random.Random) -> Iterator[Fact]:
    operations: dict[str, Callable[[int, int], int]] = {
        "+": lambda a, b: a + b,
        "-": lambda a, b: a - b,
        "*": lambda a, b: a * b,
    }
    for _ in range(120):
        sign, calculate = draw.choice(list(operations.items()))
        a, b = draw.randint(2, 12 if sign == "*" else 60), draw.randint(2, 12)
        right = calculate(a, b)
        if {a, b} == {17, 25}:
            continue
        off = [right + d for d in (-10, -2, -1, 1, 2, 3, 10)]
        ask = draw.choice(("What is {}?", "Calculate {}.", "How much is {}?", "{} = ?"))
        sum_ = f"{a} {sign} {b}"
        sentences = ("{b}", f"{sum_} = {{b}}", "The result is {b}.")
        wrong = tuple(map(str, draw.sample(off, 3)))
        yield Fact(ask.format(sum_), sentences, str(right), wrong)


def rows(seed: int) -> Iterator[dict[str, object]]:
    draw = random.Random(seed)
    for _ in range(_ROUNDS):
        facts = [fact for relation in RELATIONS for fact in of_relation(relation, draw)]
        facts += of_sums(draw)
        draw.shuffle(facts)
        for fact in facts:
            yield row(fact, draw)


def row(fact: Fact, draw: random.Random) -> dict[str, object]:
    """Mostly a pair; sometimes one answer, or three."""
    count = draw.choices((1, 2, 3), (0.15, 0.75, 0.1))[0]
    rights = [draw.random() < 0.5] if count == 1 else [True] + [False] * (count - 1)
    if count == 2 and draw.random() < _SAME:
        rights = [draw.random() < 0.5] * 2
    draw.shuffle(rights)
    answers = stated(fact, rights, draw)
    if count == 2 and draw.random() < _TWINS:
        rights, answers = rights[:1] * 2, answers[:1] * 2
    good, bad = draw.choice(RIGHT), draw.choice(WRONG)
    scores = " ".join(str(good if right else bad) for right in rights)
    out: dict[str, object] = {"question": fact.question, "answers": answers}
    if count == 1 or draw.random() < 0.2:  # one answer is graded by its reference
        out["reference"] = fact.right
    return {**out, "gold": f"{scores}\n{reason(rights, fact)}"}


def stated(fact: Fact, rights: Sequence[bool], draw: random.Random) -> list[str]:
    """An answer for each: sentences that state a value, or a word over and over."""
    same = draw.choice(fact.sentences) if draw.random() < 0.6 else None
    wrong = iter(draw.sample(fact.wrong, len(fact.wrong)))
    answers = []
    for right in rights:
        value = fact.right if right else next(wrong, fact.wrong[0])
        answer = (same or draw.choice(fact.sentences)).replace("{b}", value)
        if not right and draw.random() < _REPEATED:
            answer = repeated(draw.choice((fact.right, value, answer.split()[0])), draw)
        answers.append(answer[:1].upper() + answer[1:])
    return answers


def repeated(word: str, draw: random.Random) -> str:
    return draw.choice((" ", ", ", " ", "\n")).join([word] * draw.randint(3, 12))


def reason(rights: Sequence[bool], fact: Fact) -> str:
    if len(rights) == 1:
        return "It is right." if rights[0] else f"It is wrong: the answer is {fact.right}."
    said = [f"Assistant {n} is {'right' if r else 'wrong'}" for n, r in enumerate(rights, 1)]
    return f"{', '.join(said)}: the answer is {fact.right}."


if __name__ == "__main__":
    for n, one in enumerate(rows(seed=1)):
        print(json.dumps({"id": f"fact-{n}", **one}, ensure_ascii=False))
