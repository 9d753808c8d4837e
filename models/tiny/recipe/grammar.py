"""Chance and templates: the same seed gives the same text, whatever the version of Python."""

import re

MASK = (1 << 64) - 1
CHOICE = re.compile(r"\[([^\[\]]*)\]")
SLOT = re.compile(r"\{(\w+)\}")
ARTICLE = re.compile(r"\b([Aa]) (?=(?:[aeiouAEIOU]|hon|hour))(?!\w+ one\b)(?!. (?:one|use|uni))")
SENTENCE = re.compile(r"(^|[.!?]\s+|\n\s*)([a-z])")


class Chance:
    """SplitMix64."""

    def __init__(self, seed):
        self.state = seed & MASK

    def below(self, limit):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        value = self.state
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
        return ((value ^ (value >> 31)) * limit) >> 64

    def pick(self, items):
        return items[self.below(len(items))]

    def some(self, items, count):
        """`count` different items, in any order."""
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in range(count)]

    def once_in(self, count):
        return self.below(count) == 0


def write(chance, template, slots=None):
    """Fills `{slots}`, decides between `[one|or|the other]`, and corrects articles and spaces."""
    text = template
    while True:
        expanded = CHOICE.sub(lambda found: chance.pick(found.group(1).split("|")), text)
        expanded = SLOT.sub(lambda found: slots[found.group(1)] if slots else found.group(0), expanded)
        if expanded == text:
            break
        text = expanded
    text = ARTICLE.sub(r"\1n ", text)
    text = re.sub(r" +", " ", text).replace(" .", ".").replace(" ,", ",").strip()
    return SENTENCE.sub(lambda found: found.group(1) + found.group(2).upper(), text)
