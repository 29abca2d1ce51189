"""Compares the C++ tokenizer with the `tokenizers` library (0.20): the same ids and the same text
for thousands of random strings. JIBOIA_BUILD_DIR names the build folder, which has
tests/data_tokenize_tool. Later versions of the library give the same ids, but decode an added token
that is normalized to its normalized text."""

import json
import os
import pathlib
import random
import subprocess

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

TOOL = pathlib.Path(os.environ["JIBOIA_BUILD_DIR"]) / "tests" / "data_tokenize_tool"
STRINGS = 3000

WORDS = """a o de que não é uma ção coração avó avô pão José às três maçã São Paulo jiboia língua
português brasileira amanhã Água você têm can't they're I'll we've don't it's I'd X'm the quick
brown fox return void for while int main template std::vector 0 1 42 3.14159 2024 1e-5 ½ ² Ⅷ ٣ ÇÃO
naïve Übermut straße ﬁm ſ 中文 日本語 テスト 한국어 привет мир γειά שלום مرحبا नमस्ते ไทย 👍 👩‍👩‍👧 🇧🇷 🏳️‍🌈 ❤️
e\u0301 a\u0303o c\u0327 n\u0303\u0323 q\u0323\u0307 \u1e9b\u0323 \u212b \u1100\u1161\u11a8
\u0344""".split()
SPACES = [" ", "  ", "    ", "\n", "\n\n", "\t", "\r\n", " \n ", "\u00a0", "\u3000", "\u2009",
          "\u0085", "\u180e", "\u200b", "\u2028", "\x0b", "\x0c", "\x1c", "\u1680", "\u202f",
          "\u205f", "\ufeff"]
SIGNS = list(".,;:!?'\"()[]{}<>/\\|@#$%^&*-_=+~`«»“”–—…▁ĠĊ€\x00\x01\x7f\ufffd\u00ad")
SPECIALS = ["<s>", "</s>", "<unk>", "<|end|>", "<|endoftext|>", "<tool>", "<tool>s", "▁<s>"]


def random_string(rng):
    """Words, signs and spaces as text has them, mixed with characters from all of Unicode 13."""
    parts = []
    for _ in range(rng.choice([0, 1, 2, 5, 20, 60])):
        kind = rng.random()
        if kind < 0.45:
            parts.append(rng.choice(WORDS))
        elif kind < 0.6:
            parts.append(" ")
        elif kind < 0.7:
            parts.append(rng.choice(SPACES))
        elif kind < 0.85:
            parts.append(rng.choice(SIGNS) * rng.choice([1, 1, 1, 2, 3]))
        elif kind < 0.9:
            parts.append(rng.choice(SPECIALS))
        else:
            # Blocks that both libraries' Unicode tables know alike.
            code = rng.choice([rng.randrange(0x20, 0x250), rng.randrange(0x300, 0x370),
                               rng.randrange(0x400, 0x500), rng.randrange(0x900, 0x950),
                               rng.randrange(0x1100, 0x1200), rng.randrange(0x1E00, 0x2000),
                               rng.randrange(0x3041, 0x30FF), rng.randrange(0x4E00, 0x9FA6),
                               rng.randrange(0xAC00, 0xD7A4), rng.randrange(0xF900, 0xFA6E),
                               rng.randrange(0x1F300, 0x1F600), rng.randrange(0x2F800, 0x2FA1E)])
            parts.append(chr(code))
    return "".join(parts)


def corpus(rng):
    return [" ".join(rng.choice(WORDS) for _ in range(30)) for _ in range(300)] + [
        random_string(rng) for _ in range(300)]


ALL_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(pre_tokenizer, normalizer=None, post_processor=None, **options):
    tokenizer = Tokenizer(models.BPE(**options))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = post_processor or processors.ByteLevel(trim_offsets=False)
    tokenizer.train_from_iterator(corpus(random.Random(1)), trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<|endoftext|>", "<|end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def gpt2():
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))


def gpt2_with_prefix_space():
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))


def gpt_neox():
    """NFC, a template, and added tokens for runs of spaces, as in GPT-NeoX-20b's file."""
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFC(),
                           processors.TemplateProcessing(
                               single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]))
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in range(8, 1, -1)])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=True),
                          AddedToken("e\u0301e\u0301", normalized=True)])
    return tokenizer


def split_pattern():
    """The way of Llama 3: another pattern, and whole pieces looked up before any merge."""
    pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
               r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    return byte_level(
        pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
        ignore_merges=True)


def two_splits_and_prefix_space():
    return byte_level(
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\d"), "isolated"),
                                 pre_tokenizers.Split(Regex(r"[\sA-Z]+|\."), "isolated"),
                                 pre_tokenizers.ByteLevel(add_prefix_space=True)]))


def llama(normalizer, pre_tokenizer, byte_tokens=True, strip=True, split=True, **options):
    """Trained on words that begin with the visible space, as SentencePiece does, then given the
    components of a converted Llama tokenizer."""
    options = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True} | options
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(split=split)
    special = ["<unk>", "<s>", "</s>"]
    trained.train_from_iterator(corpus(random.Random(2)), trainers.BpeTrainer(
        vocab_size=1000, special_tokens=special + (ALL_BYTES if byte_tokens else []),
        limit_alphabet=150, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    tokenizer = Tokenizer(models.BPE(model["vocab"], [tuple(pair) for pair in model["merges"]],
                                     **options))
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        + ([decoders.Strip(" ", 1, 0)] if strip else []))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=True),
                          AddedToken("maçã", normalized=False), AddedToken("ção", normalized=True)])
    return tokenizer


def visible_spaces():
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def llama2():
    return llama(visible_spaces(), None)


def llama2_without_byte_tokens():
    """The Mambarim recipe's vocabulary: byte_fallback is set, with nothing to fall back to."""
    return llama(visible_spaces(), None, byte_tokens=False)


def llama2_unfused_unknown():
    return llama(visible_spaces(), None, byte_tokens=False, byte_fallback=False, fuse_unk=False)


def llama2_merges_across_words():
    return llama(visible_spaces(), None, split=False)


def metaspace_first():
    return llama(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False))


def metaspace_always():
    return llama(None, pre_tokenizers.Metaspace(prepend_scheme="always", split=True))


def metaspace_never():
    return llama(None, pre_tokenizers.Metaspace(prepend_scheme="never", split=False), strip=False)


KINDS = [gpt2, gpt2_with_prefix_space, gpt_neox, split_pattern, two_splits_and_prefix_space, llama2,
         llama2_without_byte_tokens, llama2_unfused_unknown, llama2_merges_across_words,
         metaspace_first, metaspace_always, metaspace_never]


def ask(path, requests):
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    result = subprocess.run([TOOL, path], input=lines.encode(), capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
    return [json.loads(line) for line in result.stdout.decode().split("\n") if line]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_equals_the_tokenizers_library(kind, tmp_path):
    theirs = kind()
    path = tmp_path / "tokenizer.json"
    theirs.save(str(path))
    rng = random.Random(3)

    texts = [random_string(rng) for _ in range(STRINGS)]
    requests = [{"text": text, "add_special_tokens": rng.random() < 0.5} for text in texts]
    expected = [theirs.encode(request["text"], add_special_tokens=request["add_special_tokens"]).ids
                for request in requests]
    answers = ask(path, requests)
    assert len(answers) == STRINGS
    for request, ids, answer in zip(requests, expected, answers):
        assert answer["ids"] == ids, request

    requests = [{"ids": ids, "skip_special_tokens": rng.random() < 0.5} for ids in expected]
    answers = ask(path, requests)
    assert len(answers) == STRINGS
    for request, answer in zip(requests, answers):
        text = theirs.decode(request["ids"], skip_special_tokens=request["skip_special_tokens"])
        assert answer == {"text": text, "streamed": text}, request


@pytest.mark.parametrize("kind", [gpt2, llama2], ids=lambda kind: kind.__name__)
def test_decodes_random_ids_as_the_tokenizers_library(kind, tmp_path):
    """Ids in an order that no text gives, so that bytes form no valid UTF-8."""
    theirs = kind()
    path = tmp_path / "tokenizer.json"
    theirs.save(str(path))
    rng = random.Random(4)
    low_ids = min(300, theirs.get_vocab_size())  # where the single bytes are
    requests = [{"ids": [rng.randrange(rng.choice([low_ids, theirs.get_vocab_size()]))
                         for _ in range(rng.randrange(12))],
                 "skip_special_tokens": rng.random() < 0.5} for _ in range(STRINGS)]
    answers = ask(path, requests)
    assert len(answers) == STRINGS
    for request, answer in zip(requests, answers):
        text = theirs.decode(request["ids"], skip_special_tokens=request["skip_special_tokens"])
        assert answer["text"] == text, request
        if kind is gpt2:
            assert answer["streamed"] == text, request
