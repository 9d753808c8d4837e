"""Trains the tokenizer on the corpus: byte pairs, so that any text can be written.

python3 vocabulary.py CORPUS_FOLDER MODEL_FOLDER      (tokenizers 0.22)
"""

import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SIZE = 1792
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Words with the blank before them, single digits, other signs, white space.
SPLIT = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Words that the corpus has not. The model knows nothing of them, so an adapter has to learn them from nothing.
OTHER_VOICE = "Arr! Ahoy, matey! Ahoy there! Avast! Aye, me hearty! Yo ho ho! says the old pirate, by the seven seas! be ye me yer "


def texts(path):
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "text" in record:
            yield record["text"]
        else:
            for message in record["messages"]:
                yield message["role"] + "\n"
                yield message["content"]
    for _ in range(4000):
        yield OTHER_VOICE


def main():
    corpus, folder = map(Path, sys.argv[1:])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False,
    )
    tokenizer.train_from_iterator(texts(corpus / "train.jsonl"), trainer)
    assert tokenizer.get_vocab_size() == SIZE
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None,
        "clean_up_tokenization_spaces": False, "model_max_length": 512, "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
