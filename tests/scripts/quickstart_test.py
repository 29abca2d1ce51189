"""The quickstart's tools: text cleaning, the split, the tokenizer, the verdict."""

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

QUICKSTART = Path(os.environ["JIBOIA_SOURCE_DIR"]) / "scripts/quickstart"
sys.path.insert(0, str(QUICKSTART))

import train_tokenizer  # noqa: E402
from jiboia_data import package_text, text_cleaning  # noqa: E402
from jiboia_data.errors import DataError  # noqa: E402

SENTENCE = "Este é o diretório raiz, que contém os outros diretórios do sistema."


def lines(paragraphs):
    return [text_cleaning.one_line(p) for p in paragraphs if p.strip()]


def test_html_keeps_the_text_and_drops_navigation_and_code():
    page = """<html><head><title>no</title></head><body><nav><p>no<br>no</p></nav>
      <div class="toc"><div>no</div></div><h1>A <b>tela</b></h1>
      <p>Um par&aacute;grafo<br/>em
      duas linhas.</p><pre>no</pre><table><tr><td>um</td><td>dois</td></tr></table></body></html>"""
    assert lines(text_cleaning.read_html(page)[0]) == [
        "A tela", "Um parágrafo", "em duas linhas.", "um", "dois",
    ]


def test_roff_keeps_the_text_and_drops_macros_tables_and_examples():
    page = r""".\" comment
.TH hier 7 "30 outubro 2022"
.SH NOME
hier \- descrição da \fIhierarquia\fP
de arquivos
.PP
Veja
.BR mount (8)
e mono\-usuário.
.TS
no
.TE
.nf
no
.fi
Fim."""
    assert lines(text_cleaning.read_roff(page)[0]) == [
        "hier - descrição da hierarquia de arquivos", "Veja mount(8) e mono-usuário.", "Fim.",
    ]


def test_manual_is_cut_at_its_sections_after_the_table_of_contents():
    text = "Guia\n====\n\n  1.1.  Começo\n\n1.1. Começo\n-----------\n\n  O _primeiro_\n  texto `ls'.\n\n1.2. Fim\n"
    sections = [lines(section) for section in text_cleaning.read_manual(text)]
    assert sections == [["1.1. Começo", "O primeiro texto ls."], ["1.2. Fim"]]


def test_fortunes_are_cut_at_percent_signs():
    documents = text_cleaning.read_fortunes("Um.\nDois 100%.\n%\nTrês.\n%\n")
    assert [lines(d) for d in documents] == [["Um. Dois 100%."], ["Três."], []]


@pytest.mark.parametrize(
    "paragraph, verdict",
    [
        (SENTENCE, True),
        ("This is the root directory of the system, a file that holds a directory.", False),
        ("int main(int argc, char** argv) { return do_it(a, e, o); }", False),
        ("Capítulo 3", False),
        ("", False),
    ],
)
def test_language_filter(paragraph, verdict):
    assert text_cleaning.is_portuguese(paragraph) is verdict


def test_cleaner_drops_what_it_has_seen_and_what_repeats_itself():
    cleaner = text_cleaning.Cleaner(text_cleaning.is_portuguese)
    other = "O arquivo foi gravado no disco com sucesso."
    assert cleaner.clean([SENTENCE, "  " + SENTENCE.replace(" ", "\n"), "ls -l"]) == SENTENCE
    assert cleaner.clean([SENTENCE, other]) == other
    assert cleaner.clean([f"O valor da opção {n} é o número da linha." for n in range(300)]) == ""


def make_package(folder, text):
    root = folder / "root"
    (root / "DEBIAN").mkdir(parents=True)
    control = "Package: prosa\nVersion: 1.0\nArchitecture: all\nMaintainer: n <n@n>\nDescription: n\n"
    (root / "DEBIAN/control").write_text(control)
    (root / "usr").mkdir()
    (root / "usr/fortunes").write_text(text, encoding="latin-1")
    deb = folder / "prosa_1.0_all.deb"
    command = ["dpkg-deb", "--root-owner-group", "-b", root, deb]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return deb


def test_gather_is_deterministic_and_holds_out_two_percent(tmp_path, capsys):
    sayings = [f"{SENTENCE[:-1]}, e o número {n * n} não é o do outro." for n in range(3000)]
    deb = make_package(tmp_path, "\n%\n".join(sayings))
    package = {"name": "prosa", "contents": "", "licence": "GPL", "files": "usr/fortunes"}
    package |= {"format": "fortunes", "encoding": "latin-1", "sha256": {}}
    absent = package | {"name": "ausente"}
    debs = {"prosa": deb, "ausente": None}
    written = []
    for name in ("a", "b"):
        cleaner = text_cleaning.Cleaner(text_cleaning.is_portuguese)
        corpus = package_text.gather(
            [package, absent], debs, tmp_path / name, cleaner, text_cleaning.READERS, held_out=0.02
        )
        names = ("train.jsonl", "validation.jsonl")
        written.append([(tmp_path / name / split).read_bytes() for split in names])
    assert written[0] == written[1]
    train, validation = ([json.loads(x)["text"] for x in part.splitlines()] for part in written[0])
    assert sorted(train + validation) == sorted(sayings)
    assert 30 <= len(validation) <= 90
    assert corpus["splits"]["validation"]["documents"] == len(validation)
    assert corpus["packages"][0]["bytes"] == sum(len(s.encode()) for s in sayings)
    warnings = capsys.readouterr().err
    assert "prosa 1.0: no hash on record" in warnings and "ausente: not offered" in warnings


def test_a_known_version_must_match_its_hash(tmp_path):
    deb = make_package(tmp_path, SENTENCE)
    package = {"name": "prosa", "contents": "", "licence": "GPL"}
    digest = hashlib.sha256(deb.read_bytes()).hexdigest()
    assert package_text.check_hash(package | {"sha256": {"1.0": ["0" * 64, digest]}}, deb)["version"] == "1.0"
    with pytest.raises(DataError, match="SHA-256"):
        package_text.check_hash(package | {"sha256": {"1.0": ["0" * 64]}}, deb)
    assert not deb.exists()


def test_tokenizer_is_deterministic_and_round_trips_any_text(tmp_path):
    documents = [f"{SENTENCE} {n} çãé" for n in range(200)]
    source = tmp_path / "train.jsonl"
    source.write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
    made = []
    for threads in ("1", "2"):
        output = tmp_path / threads
        command = [sys.executable, QUICKSTART / "train_tokenizer.py", source]
        command += ["--output", output, "--vocab-size", "320"]
        subprocess.run(command, check=True, env=os.environ | {"RAYON_NUM_THREADS": threads})
        made.append((output / "tokenizer.json").read_bytes())
    assert made[0] == made[1]

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "1")
    # generate(**tokenizer(text)) must work: Mamba takes no token_type_ids.
    assert set(tokenizer("O sistema")) == {"input_ids", "attention_mask"}
    assert (len(tokenizer), tokenizer.eos_token_id) == (320, 0)
    for text in (SENTENCE, " dois  espaços \n\t fim ", "日本 🐍 e\u0301 \x00\x7f", "a . b , don 't"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert train_tokenizer.END_OF_TEXT == tokenizer.decode([0])


@pytest.mark.parametrize("loss, code", [(3.9, 0), (4.2, 5), (math.nan, 5)])
def test_summary_fails_unless_the_model_beats_the_bigram(tmp_path, loss, code):
    def put(name, text):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    package = {"name": "prosa", "version": "1.0", "contents": "Prosa", "licence": "GFDL-1.1"}
    package |= {"bytes": 10, "documents": 1, "sha256": "0"}
    corpus = {"packages": [package], "splits": {"train": {"bytes": 10}, "validation": {"bytes": 1}}}
    put("corpus/corpus.json", json.dumps(corpus))
    score = {"nats_per_token": 4.2, "bits_per_byte": 1.8}
    put("baselines.json", json.dumps({"unigram": score, "bigram": score, "held_out_targets": 9, "train_tokens": 90}))
    put("evaluation.json", json.dumps({"loss": loss, "bits_per_byte": 1.7}))
    step = {"step": 1, "train/loss": 7.6, "train/tokens": 64, "perf/step_s": 0.5}
    put("metrics.jsonl", json.dumps(step) + "\n" + json.dumps(step | {"step": 2, "eval/loss": 5}) + "\n")
    header = json.dumps({"__metadata__": {"format": "pt"}, "a": {"shape": [2, 3]}, "b": {"shape": []}})
    (tmp_path / "hf").mkdir()
    size = len(header).to_bytes(8, "little")
    (tmp_path / "hf/model.safetensors").write_bytes(size + header.encode())

    output = tmp_path / "summary.json"
    command = [sys.executable, QUICKSTART / "summarize.py", tmp_path, "--output", output]
    assert subprocess.run(command, check=False).returncode == code
    assert output.exists() == (code == 0)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    if code == 0:
        summary = json.loads(output.read_text())
        assert (summary["parameters"], summary["steps"], summary["training_seconds"]) == (7, 2, 1.0)
        card = tmp_path / "hf/README.md"
        command = [sys.executable, QUICKSTART / "model_card.py", "--prompt", "O 'sistema'"]
        command += ["--summary", output, "--output", card]
        subprocess.run(command, check=True)
        assert "| prosa | 1.0 | Prosa | GFDL-1.1 | 10 |" in card.read_text()
