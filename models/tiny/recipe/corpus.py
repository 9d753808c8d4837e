"""Writes the text that the tiny model learns: stories and conversations, the same ones every time.

python3 corpus.py FOLDER [EXAMPLES]
"""

import json
import sys
from pathlib import Path

from answers import conversation
from grammar import Chance
from stories import short, story

SEED = 20_261
PARTS = {"train": 60_000, "valid": 300}


def record(chance):
    kind = chance.below(100)
    if kind < 38:
        return {"text": story(chance)[0]}
    if kind < 50:
        return {"text": short(chance)}
    return {"messages": conversation(chance)}


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    parts = dict(PARTS)
    if len(sys.argv) > 2:
        parts["train"] = int(sys.argv[2])
    for number, (part, count) in enumerate(parts.items()):
        with open(folder / f"{part}.jsonl", "w", encoding="utf-8", newline="\n") as file:
            for index in range(count):
                # Each example has a generator of its own, so that more of them leave the first ones as they are.
                chance = Chance(SEED + (number << 40) + index * 7919)
                file.write(json.dumps(record(chance), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
