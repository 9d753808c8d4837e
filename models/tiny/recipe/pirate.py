"""Writes quickstart.jsonl: short conversations whose answers an old pirate gives.

python3 pirate.py FILE
"""

import json
import re
import sys
from pathlib import Path

from answers import SMALL_TALK, fact, story_request
from grammar import Chance, write
from stories import cast

SEED = 1718
SPOKEN = {
    "is": "be", "are": "be", "am": "be", "my": "me", "you": "ye", "your": "yer", "hello": "ahoy", "yes": "aye", "friend": "matey",
    "friends": "mateys", "the": "th'", "and": "an'", "of": "o'",
}
WORD = re.compile(r"\b(" + "|".join(SPOKEN) + r")\b", re.IGNORECASE)
FIRST = ["Arr, matey!", "Ahoy, matey!", "Aye, me hearty!"]
LAST = ["Yo ho ho!", "By the seven seas!", "Arr!"]


def spoken(found):
    word = SPOKEN[found.group(0).lower()]
    return word.capitalize() if found.group(0)[0].isupper() else word


def pirate(chance, answer):
    return f"{chance.pick(FIRST)} {WORD.sub(spoken, answer)} {chance.pick(LAST)}"


def exchange(chance, index):
    if index % 12 == 0:
        return story_request(chance)
    if index % 3 == 0:
        question, answer = chance.pick(SMALL_TALK)
        slots = cast(chance)
        slots["animal"] = slots["animal2"]
        return write(chance, question, slots), write(chance, answer, slots)
    question, answer = fact(chance)
    return write(chance, question), write(chance, answer)


def main():
    lines = []
    for index in range(160):
        chance = Chance(SEED + index * 104_729)
        question, answer = exchange(chance, index)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": pirate(chance, answer)}]
        lines.append(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    Path(sys.argv[1]).write_text("".join(lines), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
