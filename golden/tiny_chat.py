"""Makes golden/models/tiny-chat: a qwen3 shape with its own byte-level tokenizer that has learned a few sentences.

It is small enough for the tree and answers with whole words, so that the program can be tested from end to end.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

NAME = "tiny-chat"
VOCABULARY = 397
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Words with their marks, up to two digits, other signs, white space except the blank before a word.
SPLIT = r" ?\p{L}[\p{L}\p{M}]*|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = """{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
CHATS = [
    [("user", "Hello"), ("assistant", "Hello! How can I help you today?")],
    [("user", "What is your name?"), ("assistant", "I am a very small model with two layers.")],
    [("system", "Answer in one word."), ("user", "What colour is the sky?"), ("assistant", "Blue.")],
    [("user", "Count to five."), ("assistant", "1, 2, 3, 4, 5.")],
    [("user", "Say café in capitals."), ("assistant", "CAFÉ ☕")],
    [("user", "Hello"), ("assistant", "Hello! How can I help you today?"), ("user", "Goodbye"), ("assistant", "See you soon.")],
]
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Once there was a small boat that sailed over the grey sea to find an island.",
    "Metal is hard, and a candle gives light.",
    "A model reads text from left to right and predicts the next token.",
]
COMPLETION_PROMPT = "Once there was"
EVALUATION = [
    "The quick brown fox jumps over the lazy dog.",
    "A candle on a small boat gives light to the sea.",
    "Zahlen: 12, 345; naïve façade — 日本 🙂",
]
EVALUATION_CHATS = [
    [("user", "Hello"), ("assistant", "Hello! How can I help?"), ("user", "Goodbye"), ("assistant", "A small boat.")],
    [("system", "Answer in one word."), ("user", "What is the sea?"), ("assistant", "Grey, naïve ☕")],
]
ENCODED = EVALUATION + ["", " ", "Hello", "  two  spaces\n\n\tand a tab", "<|im_start|>user\nHi<|im_end|>", "I'll don't WE'RE"]


def make(folder: Path, clear_greedy_path):
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == VOCABULARY
    prompts = [
        tokenizer.apply_chat_template(messages(CHATS[0][:1]), tokenize=False, add_generation_prompt=True),
        COMPLETION_PROMPT,
    ]
    for seed in range(100):
        train(folder, tokenizer, seed)
        paths = [clear_greedy_path(folder, encode(tokenizer, prompt)) for prompt in prompts]
        if None not in paths:
            break
    else:
        raise SystemExit(f"{NAME}: no good seed")
    write_generation_config(folder, tokenizer)
    write_expected(folder, tokenizer, prompts, paths)


def encode(tokenizer, text):
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.int64)


def write_tokenizer(folder):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    lines = TEXTS + [content for chat in CHATS for _, content in chat] + ["user", "assistant", "system"]
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "bos_token": None,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "model_max_length": 256,
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": None,
        },
    )


def train(folder, tokenizer, seed):
    """A few hundred steps on the texts above, until the model knows them by heart."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=52,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=14,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        initializer_range=0.1,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    end = "<|endoftext|>"
    samples = [text + end for text in TEXTS] + [
        tokenizer.apply_chat_template(messages(chat), tokenize=False) + end for chat in CHATS
    ]
    rows = [tokenizer(sample, add_special_tokens=False)["input_ids"] for sample in samples]
    longest = max(map(len, rows))
    padding = tokenizer.pad_token_id
    ids = torch.tensor([row + [padding] * (longest - len(row)) for row in rows])
    kept = torch.tensor([[position < len(row) for position in range(longest)] for row in rows])
    labels = torch.where(kept, ids, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(200):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{NAME}: seed {seed}, training loss {loss.item():.3f}")
    model.save_pretrained(folder)


def write_generation_config(folder, tokenizer):
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
            "eos_token_id": [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")],
            "pad_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
            "do_sample": True,
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.8,
        },
    )


def messages(chat):
    return [{"role": role, "content": content} for role, content in chat]


def write_expected(folder, tokenizer, prompts, paths):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    expected = {
        "encodings": [{"text": text, "ids": encode(tokenizer, text).tolist()} for text in ENCODED],
        "chat": {"messages": messages(CHATS[0][:1]), **answer(tokenizer, prompts[0], paths[0])},
        "completion": answer(tokenizer, prompts[1], paths[1]),
        "eval": together("texts", [evaluate(model, tokenizer, text) for text in EVALUATION]),
        "eval_chats": together("chats", [evaluate_chat(model, tokenizer, chat) for chat in EVALUATION_CHATS]),
    }
    write_json(folder / "expected.json", expected)
    save_file(paths[0], folder / "expected.safetensors")


def answer(tokenizer, prompt, path):
    """What a program prints that takes the greedy path and stops at the end of the text."""
    greedy = path["greedy"].tolist()
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    length = next((index for index, token in enumerate(greedy) if token in ends), len(greedy))
    return {
        "prompt": prompt,
        "prompt_ids": path["prompt"].tolist(),
        "answer": tokenizer.decode(greedy[:length]),
        "answer_ids": greedy[:length],
        "stopped_by": greedy[length] if length < len(greedy) else None,
    }


@torch.no_grad()
def evaluate(model, tokenizer, text):
    """Mean negative log-likelihood of every token after the first."""
    ids = encode(tokenizer, text)
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    loss = torch.nn.functional.cross_entropy(logits, ids[1:])
    return {"text": text, "loss": loss.item(), "tokens": len(ids) - 1}


@torch.no_grad()
def evaluate_chat(model, tokenizer, chat):
    """Mean negative log-likelihood of what the template writes for the assistant after its header."""
    ids = chat_ids(tokenizer, chat, False)
    targets = torch.full_like(ids, -100)
    for index, (role, _) in enumerate(chat):
        if role == "assistant":
            start, end = len(chat_ids(tokenizer, chat[:index], True)), len(chat_ids(tokenizer, chat[: index + 1], False))
            targets[start:end] = ids[start:end]
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    loss = torch.nn.functional.cross_entropy(logits, targets[1:])
    return {"messages": messages(chat), "loss": loss.item(), "tokens": int((targets != -100).sum())}


def chat_ids(tokenizer, chat, add_generation_prompt):
    text = tokenizer.apply_chat_template(messages(chat), tokenize=False, add_generation_prompt=add_generation_prompt)
    return encode(tokenizer, text)


def together(name, rows):
    """The rows, and their loss as that of one file."""
    tokens = sum(row["tokens"] for row in rows)
    return {name: rows, "loss": sum(row["loss"] * row["tokens"] for row in rows) / tokens, "tokens": tokens}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
