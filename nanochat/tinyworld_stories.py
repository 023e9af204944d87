"""Little stories of two people with their things: who has what, where it is, who gave it.

The state of the story is kept while it is told, so every sentence and every answer agrees with what came before.

Lesson: lessons/16_train_depth_4
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from nanochat.tinyworld_facts import capitalised, load, with_article


@dataclass
class Story:
    """The sentences so far and the state that they tell; a thing is named by its noun with colour (`red ball`)."""

    sentences: list[str] = field(default_factory=list)
    where: dict[str, str] = field(default_factory=dict)
    holder: dict[str, str] = field(default_factory=dict)
    thing_place: dict[str, str] = field(default_factory=dict)
    giver: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The story in one line."""
        return " ".join(self.sentences)

    def questions(self, generator: random.Random) -> list[tuple[str, str]]:
        """(question, answer) pairs that the end of the story decides, in random order."""
        data = load("stories")
        cases: list[tuple[str, dict[str, str]]] = []
        cases += [("holder", {"d": f"the {t}", "x": x}) for t, x in self.holder.items()]
        cases += [("thing_place", {"d": f"the {t}", "p": p}) for t, p in self.thing_place.items()]
        cases += [("giver", {"d": f"the {t}", "x": x, "y": y}) for t, (x, y) in self.giver.items()]
        cases += [("place", {"x": x, "p": p}) for x, p in self.where.items()]
        generator.shuffle(cases)
        return [
            (_fill(generator.choice(data["questions"][kind]), slots), _fill(data["replies"][kind], slots))
            for kind, slots in cases
        ]


def _fill(template: str, slots: Mapping[str, str]) -> str:
    return template.format(**slots, **{name.upper(): capitalised(text) for name, text in slots.items()})


def tell(generator: random.Random, events: int) -> Story:
    """A story of two people and two things with so many events."""
    data = load("stories")
    story = Story()
    people = generator.sample(data["people"], 2)
    place = generator.choice(data["places"])
    story.where = dict.fromkeys(people, place)
    story.sentences.append(_fill(generator.choice(data["openings"]), {"x": people[0], "y": people[1], "p": place}))
    for person, noun in zip(people, generator.sample(data["things"], 2), strict=True):
        thing = f"{generator.choice(data['colours'])} {noun}"
        story.holder[thing] = person
        story.sentences.append(_fill(generator.choice(data["have"]), {"x": person, "t": with_article(thing)}))
    for _ in range(events):
        _event(story, generator)
        if generator.random() < 0.25:
            story.sentences.append(_fill(generator.choice(data["feelings"]), {"x": generator.choice(people)}))
    return story


def _event(story: Story, generator: random.Random) -> None:
    """One thing that may happen now: a gift, a way, or a thing put down."""
    data = load("stories")
    person = generator.choice(list(story.where))
    other = next(name for name in story.where if name != person)
    things = [thing for thing, holder in story.holder.items() if holder == person]
    together = story.where[person] == story.where[other]
    kind = generator.choice(["give"] * (2 if things and together else 0) + ["put"] * bool(things) + ["go"])
    slots = {"x": person, "y": other, "p": story.where[person]}
    if kind == "go":
        story.where[person] = slots["p"] = generator.choice([p for p in data["places"] if p != slots["p"]])
    else:
        thing = generator.choice(things)
        slots["d"] = f"the {thing}"
        if kind == "give":
            story.holder[thing] = other
            story.giver[thing] = (person, other)
        else:
            del story.holder[thing]
            story.thing_place[thing] = slots["p"]
    story.sentences.append(_fill(generator.choice(data[kind]), slots))
