"""Recurrent generation against transformers' own: the same greedy text from the same folder."""

import random

import torch
from parity import reference_model
from programs import run
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast


def save_tokenizer(folder):
    words = "água pão coração ônibus não são é à sol lua mar rio casa".split()
    dice = random.Random(1)
    text = [" ".join(dice.choices(words, k=30)) + "." for _ in range(200)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(text, trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"],
                                                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)


def test_greedy_text_equals_theirs(tmp_path):
    # More rows than the tokenizer has tokens: the rest must never be drawn.
    model = reference_model(vocab_size=320, hidden_size=32, num_hidden_layers=3, eos_token_id=0, bos_token_id=0,
                            pad_token_id=0)
    with torch.no_grad():
        model.backbone.embeddings.weight[300:] = 0
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for prompt in ["água", "o coração não é de pedra, " * 40]:
        theirs = tokenizer(prompt).input_ids
        for _ in range(40):  # their own generate() needs a newer torch than distributions have
            token = model(torch.tensor([theirs]), use_cache=False).logits[0, -1, :300].argmax().item()
            if token == 0:
                break
            theirs.append(token)
        ours = run("generate", "--model", tmp_path, "--prompt", prompt, "--max-new-tokens", 40, "--temperature",
                   0).stdout
        assert ours == tokenizer.decode(theirs, skip_special_tokens=True) + "\n"


def test_equal_seeds_give_equal_texts(tmp_path):
    reference_model(vocab_size=300, hidden_size=16, num_hidden_layers=1).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    texts = [run("generate", "--model", tmp_path, "--prompt", "sol", "--max-new-tokens", 30, "--seed", seed).stdout
             for seed in [1, 1, 2]]
    assert texts[0] == texts[1] != texts[2]
