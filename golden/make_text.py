"""Writes the reference values for text: chat templates and tokenizers.

Made with Python 3.11, transformers 5.23.0, tokenizers 0.23.3, jinja2 3.1.6. Run it from anywhere:

    python golden/make_text.py

It reads golden/templates/*.jinja and writes one JSON file per template, and it trains three tiny tokenizers into
golden/tokenizers/. The templates and the training text were written for this repository.
"""

import datetime
import json
from pathlib import Path

import tokenizers
import transformers
from jinja2.exceptions import TemplateError
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

assert transformers.__version__ == "5.23.0" and tokenizers.__version__ == "0.23.3"

HERE = Path(__file__).parent
NOW = datetime.datetime(2026, 2, 3, 14, 5, 9)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


class FixedClock:
    @staticmethod
    def now():
        return NOW


def write_json(path, value, indent=1):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------------- chat templates

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather at a place <now> & \"later\".",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "City, é.g. Zürich 🏔"},
                "days": {"type": "integer", "default": 3, "minimum": 0.5, "maximum": 1e20},
                "units": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                "spots": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "lat": {"type": ["number", "null"]},
                            "tags": {"type": "array", "items": {"type": "string"}},
                        },
                        "required": ["lat"],
                    },
                },
                "items": {"type": "boolean", "default": False},
            },
            "required": ["place"],
        },
    },
}
TIME = {
    "type": "function",
    "function": {
        "name": "now",
        "description": "The time.",
        "parameters": {"type": "object", "properties": {}, "additionalProperties": None},
        "return": {"type": "string"},
    },
}


def call(name, arguments, id="abc123def"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def turns(*texts):
    roles = ["user", "assistant"]
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


SYSTEM = {"role": "system", "content": "  You are brief.\n"}
CONVERSATIONS = [
    {"name": "one turn", "messages": turns("Hello there, how are you today?")},
    {"name": "system and turns", "messages": [SYSTEM, *turns("Hi", " Hello! \n", "Why is the sky blue?", "Scattering.")]},
    {
        "name": "unicode and quotes",
        "messages": turns("Здравствуй 'мир' \"quoted\"\n\ttab\\ 🦀👩‍🔬 <b>&amp;</b>", "日本語 ok\r\nnext\u2028line\x1f", "e\u0301 ﬁ ẞ İ"),
    },
    {
        "name": "tools called",
        "messages": [
            SYSTEM,
            *turns("Weather in Bern?"),
            {"role": "assistant", "content": None, "tool_calls": [call("get_weather", {"place": "Bern", "days": 2, "x": 1.0, "n": None})]},
            {"role": "tool", "tool_call_id": "abc123def", "name": "get_weather", "content": "{\"temp\": 20.5}"},
            {"role": "assistant", "content": "20.5 degrees."},
            {"role": "user", "content": "Thanks"},
        ],
        "tools": [WEATHER, TIME],
    },
    {
        "name": "two calls at once",
        "messages": [
            *turns("Both, please"),
            {"role": "assistant", "content": "", "tool_calls": [call("now", {}), call("get_weather", {"place": "Ōsaka"}, "id2")]},
            {"role": "tool", "tool_call_id": "abc123def", "content": "12:00"},
            {"role": "tool", "tool_call_id": "id2", "content": {"temp": [1, -2.5, 1e-7], "ok": True}},
        ],
        "tools": [WEATHER],
        "add_generation_prompt": True,
    },
    {"name": "no tools given but a list", "messages": turns("Hi"), "tools": []},
    {
        "name": "parts",
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
            {"role": "user", "content": [{"type": "image", "url": "a.png"}, {"type": "text", "text": " What is this? "}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A cat."}, {"type": "text", "text": "Really."}]},
        ],
    },
    {"name": "empty contents", "messages": [{"role": "system", "content": ""}, *turns("", "", "x")]},
    {"name": "wrong order", "messages": [{"role": "assistant", "content": "I start."}, {"role": "assistant", "content": "And go on."}]},
    {
        "name": "reasoning",
        "messages": [
            *turns("2+2?", "<think>\nEasy.\n</think>\n\n4", "3+3?"),
            {"role": "assistant", "reasoning": "Adding.", "content": "6"},
            {"role": "user", "content": "4+4?"},
            {"role": "assistant", "thinking": "\nAgain.", "content": "8"},
        ],
        "extra": {"enable_thinking": False},
    },
    {"name": "thinking off", "messages": turns("Hi"), "extra": {"enable_thinking": False, "bos_token": "<B>", "date_string": "1 May"}},
    {
        "name": "documents",
        "messages": turns("Summarise."),
        "documents": [{"title": "One", "text": "First."}, {"title": "Two", "text": "Second."}],
    },
    {"name": "continued", "messages": turns("Tell a tale", "Once upon a  "), "continue_final_message": True},
    {"name": "unknown role", "messages": [*turns("Hi"), {"role": "critic", "content": "Hm."}]},
]


def render(tokenizer, conversation, add_generation_prompt):
    options = {
        "tools": conversation.get("tools"),
        "documents": conversation.get("documents"),
        "add_generation_prompt": add_generation_prompt,
        "continue_final_message": conversation.get("continue_final_message", False),
        **conversation.get("extra", {}),
    }
    try:
        text = tokenizer.apply_chat_template(conversation["messages"], tokenize=False, **options)
    except TemplateError as error:
        # raise_exception raises TemplateError itself; subclasses come from Jinja.
        return {"raised": error.message} if type(error) is TemplateError else {"failed": f"{type(error).__name__}: {error}"}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    return {"text": text}


def spans(tokenizer, conversation, add_generation_prompt):
    """The character ranges of generation blocks, as transformers counts them."""
    messages = [{k: v for k, v in m.items() if v is not None} for m in conversation["messages"]]
    _, indices = chat_template_utils.render_jinja_template(
        conversations=[messages],
        tools=conversation.get("tools"),
        documents=conversation.get("documents"),
        chat_template=tokenizer.get_chat_template(tools=conversation.get("tools")),
        return_assistant_tokens_mask=True,
        add_generation_prompt=add_generation_prompt,
        **{**tokenizer.special_tokens_map, **conversation.get("extra", {})},
    )
    return indices[0]


def make_templates(backend):
    folder = HERE / "templates"
    sources = {path.name.removesuffix(".jinja"): path.read_text(encoding="utf-8") for path in folder.glob("*.jinja")}
    grouped = {}
    for name in sorted(sources):
        group, _, part = name.partition(".")
        if part:
            grouped.setdefault(group, []).append({"name": part, "template": sources[name]})
        else:
            grouped[group] = sources[name]
    # The same template with the line ends of another system.
    grouped["crlf"] = grouped["chatml"].replace("\n", "\r\n")
    chat_template_utils.datetime = FixedClock
    write_json(folder / "conversations.json", CONVERSATIONS)
    for group, template in grouped.items():
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **SPECIAL)
        with_spans = "{% generation" in str(template) or "{%- generation" in str(template)
        cases = []
        for conversation in CONVERSATIONS:
            outcomes = {}
            for prompt in [False] if conversation.get("continue_final_message") else [False, True]:
                outcome = render(tokenizer, conversation, prompt)
                if with_spans and "text" in outcome and not conversation.get("continue_final_message"):
                    outcome["spans"] = spans(tokenizer, conversation, prompt)
                outcomes[prompt] = outcome
            if outcomes[False] == outcomes.get(True):
                cases.append({"conversation": conversation["name"], "add_generation_prompt": [False, True]} | outcomes[False])
            else:
                cases += [{"conversation": conversation["name"], "add_generation_prompt": [prompt]} | outcome
                          for prompt, outcome in outcomes.items()]
        write_json(folder / f"{group}.json", {"chat_template": None if group == "crlf" else template, "cases": cases})
        counts = {key: sum(key in case for case in cases) for key in ["text", "raised", "failed"]}
        print(group, counts, *sorted({case["failed"] for case in cases if "failed" in case}), sep="\n  ")


# ------------------------------------------------------------------------------------------------- tokenizers

CORPUS = """
The quick brown fox jumps over the lazy dog, and the dog does not mind. It is raining today; tomorrow it will be dry.
She said: "I don't think that's right," but he'd already left. There are 12 months, 52 weeks and 365 days in a year.
def add(left, right):
    return left + right  # the sum of both numbers
The river runs down from the mountains to the sea. Boats carry wood, wool and stones from town to town, as ever.
Le garçon a mangé une pêche sucrée près de l'église; où est la forêt? Über die Brücke geht ein schöner, großer Hund.
Сегодня хорошая погода, и мы идём гулять в парк. Добрый день, как дела? Αυτή είναι μια μικρή πρόταση στα ελληνικά.
今日は天気がいいので、公園を散歩しました。 我们明天去山上看日出。 오늘은 날씨가 좋네요. 안녕하세요, 반갑습니다.
هذا نص قصير باللغة العربية. זהו משפט קצר בעברית. यह हिंदी में एक छोटा वाक्य है।
Emoji too: 🦀 🚀 😀 👩‍🔬 🇨🇭 ❤️ and arrows → ← ≤ ≥ € £ ¥ ½.
""".strip().split("\n")

TEXTS = [
    "", " ", "  ", "\n", "\n\n\n", "a", " a", "a ", "Hello", "Hello world", " Hello  world ", "The quick brown fox.",
    "don't can't won't, I'm we've they're it's", "tabs\tand\nlines\r\nand more", "    indented code\n        deeper",
    "123 4567 3.14 1e-9", "garçon", "e\u0301\u0302 combining", "Здравствуй, мир", "今日は世界", "안녕하세요", "हिंदी वाक्य",
    "🦀", "👩‍🔬👩‍🔬", "🇨🇭🇫🇷", "a🦀b", "text\u200bzero\u00a0nbsp\u3000wide", "\x00\x01\x7f", "\ufeffbom", "▁ metaspace ▁▁",
    "<s> Hello</s>", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "x<|im_end|>y", " <|im_end|> ", "<pad><pad>",
    "[CLS] a [SEP] b", "<0xE2><0x82><0xAC>", "\ufffd", "word " * 12, "ÀÉÎÕÜ àéîõü", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "½ ≤ €5 → ¥7",
]


def byte_level():
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    config = {
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "add_bos_token": True,
        "clean_up_tokenization_spaces": True,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id("<think>")): {"content": "<think>", "special": True, "normalized": False,
                                                    "lstrip": False, "rstrip": False, "single_word": False},
            "999": {"content": "<tool>", "special": False, "normalized": False, "lstrip": False, "rstrip": False,
                    "single_word": False},
        },
        "extra_special_tokens": ["<|vision|>"],
        "image_token": "<|image|>",
    }
    return tokenizer, config


def metaspace():
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=520,
        limit_alphabet=90,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    # Train on words with their leading mark, so that merges stay inside words.
    tokenizer.train_from_iterator([word for line in CORPUS for word in line.split()], trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    config = {
        "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": False, "rstrip": False,
                      "single_word": False},
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "add_bos_token": False,
        "add_eos_token": True,
    }
    return tokenizer, config


def wordpiece():
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=330, limit_alphabet=120, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in ["[CLS]", "[SEP]"]]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    config = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    return tokenizer, config


def make_tokenizers():
    for name, make in [("byte_level", byte_level), ("metaspace", metaspace), ("wordpiece", wordpiece)]:
        folder = HERE / "tokenizers" / name
        folder.mkdir(parents=True, exist_ok=True)
        backend, config = make()
        write_json(folder / "tokenizer.json", json.loads(backend.to_str()), indent=None)
        write_json(folder / "tokenizer_config.json", config)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        cases = []
        for text in TEXTS:
            ids = tokenizer.encode(text, add_special_tokens=False)
            cases.append({
                "text": text,
                "ids": ids,
                "ids_special": tokenizer.encode(text, add_special_tokens=True),
                "decoded": tokenizer.decode(ids),
                "decoded_skip": tokenizer.decode(ids, skip_special_tokens=True),
            })
        golden = {
            "vocab_size": len(tokenizer),
            "tokens": {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.get_added_vocab()},
            "special": sorted(tokenizer.all_special_ids),
            "named": tokenizer.special_tokens_map,
            "cases": cases,
        }
        write_json(folder / "golden.json", golden, indent=None)
        print(name, len(tokenizer), tokenizer.get_added_vocab())


if __name__ == "__main__":
    make_tokenizers()
    make_templates(byte_level()[0])
