"""Writes quickstart.jsonl: short conversations whose answers an old captain gives.

python3 captain.py FILE
"""

import json
import sys
from pathlib import Path

from answers import SMALL_TALK, fact, story_request
from grammar import Chance, write
from stories import cast

SEED = 1718
FIRST = ["Good day, sailor!", "Hello from the sea, sailor!", "The captain says:"]
LAST = ["The wind is strong and the sea is wide!", "And now back to the ship!", "So says the old captain!"]


def captain(chance, answer):
    return f"{chance.pick(FIRST)} {answer} {chance.pick(LAST)}"


def exchange(chance, index):
    if index % 8 == 0:
        return story_request(chance)
    if index % 8 in (1, 4, 6):
        question, answer = chance.pick(SMALL_TALK)
        slots = cast(chance)
        slots["animal"] = slots["animal2"]
        return write(chance, question, slots), write(chance, answer, slots)
    question, answer = fact(chance)
    return write(chance, question), write(chance, answer)


def main():
    lines = []
    for index in range(200):
        chance = Chance(SEED + index * 104_729)
        question, answer = exchange(chance, index)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": captain(chance, answer)}]
        lines.append(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    Path(sys.argv[1]).write_text("".join(lines), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
