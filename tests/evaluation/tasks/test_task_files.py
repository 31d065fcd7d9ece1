"""Evaluation sets in their original formats, and one sentence for what is wrong in them."""

from __future__ import annotations

import gzip
import json
import lzma
import re
from pathlib import Path

import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.tasks.files import (
    LabelledPair,
    TaggedSentence,
    read_labelled,
    read_pairs,
    read_questions,
    read_tagged,
)
from dist_metaxlm.evaluation.tasks.languages import canonical, dominant_script
from dist_metaxlm.evaluation.tasks.retrieval import read_parallel
from dist_metaxlm.evaluation.tasks.spec import BUILT_IN, TaskSpec, file_of, files_by_language, load_tasks


def put(path, text, pack=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode("utf-8")
    path.write_bytes(pack.compress(data) if pack else data)
    return path


def test_tagging_formats_give_the_same_sentences(tmp_path):
    expected = [TaggedSentence(["สวัสดี", "โลก"], ["INTJ", "NOUN"]), TaggedSentence(["#", "x"], ["SYM", "X"])]
    xtreme = put(tmp_path / "a.tsv.xz", "สวัสดี\tINTJ\nโลก\tNOUN\n\n\n#\tSYM\nx\tX\n", lzma)
    numbered = put(tmp_path / "b.conllu.gz", "0\tสวัสดี\tINTJ\n1\tโลก\tNOUN\n\n0\t#\tSYM\n1\tx\tX\n\n", gzip)
    spaced = put(tmp_path / "c.txt", "สวัสดี INTJ\nโลก NOUN\n\n# SYM\nx X")
    rest = "\t_" * 6
    conllu = put(
        tmp_path / "d.conllu",
        f"# text = สวัสดีโลก\n1-2\tสวัสดีโลก\t_\t_{rest}\n1\tสวัสดี\t_\tINTJ{rest}\n"
        f"2\tโลก\t_\tNOUN{rest}\n2.1\tจ๊ะ\t_\tPART{rest}\n\n1\t#\t_\tSYM{rest}\n2\tx\t_\tX{rest}\n",
    )
    for path in (xtreme, numbered, conllu):
        assert read_tagged(path) == expected
    # only where lines are numbered is a line that begins with # a comment
    assert read_tagged(spaced) == expected


def test_wikiann_prefixes_are_taken_off(tmp_path):
    path = put(tmp_path / "train", "en:New\tB-LOC\nen:York\tI-LOC\n\nen::\tO\n")
    assert read_tagged(path) == [TaggedSentence(["New", "York"], ["B-LOC", "I-LOC"]), TaggedSentence([":"], ["O"])]


def test_columns_of_other_files_are_named_and_never_guessed(tmp_path):
    path = put(tmp_path / "a.conll", "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\n10\u00a0000 CD I-NP O\n")
    assert read_tagged(path, token_column=1, label_column=4) == [TaggedSentence(["EU", "10\u00a0000"], ["B-ORG", "O"])]
    with pytest.raises(UserError, match="line 3 has 4 columns, where 2 would be token and tag"):
        read_tagged(path)
    with pytest.raises(UserError, match=r"line 1 has 3 columns, .* say in --tasks_file which are the token_column and"):
        read_tagged(put(tmp_path / "b.tsv", "EU\tNNP\tB-ORG\n"))


def test_classification_with_and_without_headers(tmp_path):
    xtreme = put(tmp_path / "x.tsv", 'A b.\tC d.\tneutral\n"Q" e\tf\tcontradictory\n')
    original = put(
        tmp_path / "y.tsv",
        'language\tgold_label\tsentence1\tsentence2\nde\tneutral\tA b.\tC d.\nde\tcontradiction\t"Q" e\tf\n',
    )
    assert read_labelled(xtreme) == read_labelled(original)
    assert read_labelled(original)[1] == LabelledPair('"Q" e', "f", "contradiction")


def test_one_file_of_all_languages_is_split_by_its_column(tmp_path):
    head = "language\tgold_label\tsentence1_parse\tsentence1\tsentence2\n"
    put(
        tmp_path / "xnli" / "xnli.test.tsv.gz",
        head
        + "".join(
            f"{language}\t{label}\t( x )\t{language} {label}\tb\n"
            for label in ("neutral", "entailment")
            for language in ("de", "zh", "en")
        ),
        gzip,
    )
    found = files_by_language(tmp_path, BUILT_IN["xnli"].test, "xnli")
    assert list(found) == ["de", "en", "zh"]
    assert [pair.first for pair in read_labelled(found["zh"][0], language="zh")] == ["zh neutral", "zh entailment"]
    with pytest.raises(UserError, match=r"holds no examples of language 'fr'"):
        read_labelled(found["zh"][0], language="fr")
    put(tmp_path / "wrong.tsv", head + "de\tneutral\t\ta\tb\nqq9\tneutral\t\ta\tb\n")
    with pytest.raises(UserError, match=r"line 3.*qq9"):
        files_by_language(tmp_path, ["wrong.tsv"], "xnli")


def test_parallel_files(tmp_path):
    rows = [("Hello.", "Bonjour."), ("Yes", "Oui")]
    first = put(tmp_path / "en-fr.tsv", "Hello.\tBonjour.\nYes\tOui\n")
    second = put(tmp_path / "fr-en.tsv.gz", "Bonjour.\tHello.\nOui\tYes\n", gzip)
    english, french = put(tmp_path / "x.en", "Hello.\nYes\n"), put(tmp_path / "x.fr", "Bonjour.\nOui\n")
    assert read_pairs(first, "fr") == read_pairs(second, "fr", pivot_column=2) == read_pairs(french, "fr", english) == rows


def test_pairs_in_a_file_of_more_columns(tmp_path):
    put(tmp_path / "news/en-fr.tsv", "1\tBonjour.\tHello.\tweb\n2\tOui\tYes\tweb\n")
    spec = TaskSpec(kind="retrieval", test=["news/en-{lang}.tsv"])
    with pytest.raises(UserError, match=r"has 4 tab-separated columns .* name the columns in pair_columns of --tasks_file"):
        read_parallel("news", spec, tmp_path)
    named = spec.model_copy(update={"pair_columns": (3, 2)})
    assert read_parallel("news", named, tmp_path) == {"fr": [("Hello.", "Bonjour."), ("Yes", "Oui")]}
    put(tmp_path / "news/en-fr.tsv", "\n")
    with pytest.raises(UserError, match=r"en-fr\.tsv holds no pairs; put some into it or take the file away"):
        read_parallel("news", spec, tmp_path)


def test_questions(tmp_path):
    tree = {
        "data": [
            {
                "paragraphs": [
                    {
                        "context": "东京是首都。",
                        "qas": [{"id": 7, "question": "哪里?", "answers": [{"text": "东京", "answer_start": 0}]}],
                    }
                ]
            }
        ]
    }
    (question,) = read_questions(put(tmp_path / "q.json", json.dumps(tree)))
    assert (question.identity, question.answers, question.starts) == ("7", ["东京"], [0])


@pytest.mark.parametrize(
    ("reader", "text", "message"),
    [
        (read_tagged, "a\tDET\nhouse\n", "line 2 has 1 column, but the first token of the file has 2 columns"),
        (lambda path: read_tagged(path, ["DET"]), "a\tDET\nb\tNAME\n", "line 2 has the label 'NAME'"),
        (read_tagged, "\n\n", "holds no sentences"),
        (read_labelled, "a\tb\tneutral\nc\td\n", "line 2 has 2 tab-separated columns"),
        (lambda path: read_labelled(path, ["0", "1"]), "a\tb\t2\n", "label '2', which is none of 0, 1"),
        (read_labelled, "", "holds no examples"),
        (lambda path: read_pairs(path, "fr"), "a\tb\nc\n", "line 2 has 1 tab-separated column "),
        (lambda path: read_pairs(path, "fr"), "a\tb\nc\t \n", "pair 2 has an empty side"),
        (read_questions, "{", "is not JSON"),
        (read_questions, '{"data": [{"paragraphs": [{"qas": []}]}]}', "lacks a field 'context'"),
        (read_questions, '{"data": []}', "holds no questions"),
        (
            read_questions,
            '{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": "1", "question": "q", "answers": []}]}]}]}',
            "question '1' has no answers",
        ),
    ],
)
def test_mistakes_are_one_sentence_with_their_place(tmp_path, reader, text, message):
    path = put(tmp_path / "file.tsv", text)
    with pytest.raises(UserError, match=r"file\.tsv") as caught:
        reader(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unequal_sides_of_a_pair_are_named(tmp_path):
    english, french = put(tmp_path / "x.en", "a\nb\nc\n"), put(tmp_path / "x.fr", "d\ne\n")
    with pytest.raises(UserError, match=r"x.fr ends after line 2"):
        read_pairs(french, "fr", english)


def test_language_codes():
    assert canonical("deu", "x") == canonical("de", "x") == "de"
    assert canonical("swh", "x") == canonical("swa", "x") == "sw"
    assert canonical("pt-BR", "x") == "pt-BR"
    assert canonical("kab", "x") == "kab"
    assert canonical("zho_Hans", "x") == "zh-Hans"
    assert canonical("ewe", "x") == canonical("ee", "x") == "ee"
    with pytest.raises(UserError, match="file q: 'qq' is no known language code"):
        canonical("qq", "file q")


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Grüße", "Latin"),
        ("Привет", "Cyrillic"),
        ("你好", "Han"),
        ("東京に行きます", "Kana"),
        ("안녕", "Hangul"),
        ("สวัสดี", "Thai"),
        ("مرحبا", "Arabic"),
        ("123 !", "Other"),
    ],
)
def test_scripts(text, script):
    assert dominant_script([text]) == script


def test_files_are_found_by_language_compressed_or_not(tmp_path):
    put(tmp_path / "udpos/test-de.tsv.xz", "a\tX\n", lzma)
    put(tmp_path / "udpos/test-fr.tsv", "a\tX\n")
    put(tmp_path / "udpos/test-fr.tsv.bak", "a\tX\n")
    found = files_by_language(tmp_path, BUILT_IN["udpos"].test, "udpos")
    assert {language: path.name for language, (path, _) in found.items()} == {"de": "test-de.tsv.xz", "fr": "test-fr.tsv"}
    put(tmp_path / "mlqa/test-context-de-question-de.json", "{}")
    put(tmp_path / "mlqa/test-context-de-question-en.json", "{}")
    assert list(files_by_language(tmp_path, BUILT_IN["mlqa"].test, "mlqa")) == ["de"]
    put(tmp_path / "ner/swa/train.txt", "a X\n")
    assert file_of(tmp_path, ["ner/{lang}/train.txt"], "sw", "ner").name == "train.txt"


def test_flores_has_one_english_file_and_scripts_in_its_codes(tmp_path):
    folder = tmp_path / "flores200_dataset" / "devtest"
    for code, text in (
        ("eng_Latn", "One.\nTwo.\n"),
        ("jpn_Jpan", "一。\n二。\n"),
        ("zho_Hans", "一个\n二个\n"),
        ("zho_Hant", "一個\n二個\n"),
        ("plt_Latn", "a\nb\n"),
        ("quy_Latn", "c\nd\n"),
    ):
        put(folder / f"{code}.devtest", text)
    pairs = read_parallel("flores", BUILT_IN["flores"], tmp_path)
    assert sorted(pairs) == ["ja", "mg", "qu", "zh-Hans", "zh-Hant"]
    assert pairs["ja"] == [("One.", "一。"), ("Two.", "二。")]
    assert file_of(tmp_path, ["flores200_dataset/devtest/{lang}.devtest"], "ja", "x").name == "jpn_Jpan.devtest"
    assert sorted(read_parallel("flores", BUILT_IN["flores"], tmp_path, ["ja"])) == ["ja"]


def test_treebanks_of_universal_dependencies_are_found_as_they_are(tmp_path):
    rest = "\t_" * 6
    for name in ("en_ewt-ud-train", "en_ewt-ud-dev", "en_ewt-ud-test", "th_pud-ud-test"):
        put(tmp_path / "udpos" / f"{name}.conllu", f"# text = a\n1\ta\t_\tDET{rest}\n\n")
    found = files_by_language(tmp_path, BUILT_IN["udpos"].test, "udpos")
    assert {language: path.name for language, (path, _) in found.items()} == {
        "en": "en_ewt-ud-test.conllu",
        "th": "th_pud-ud-test.conllu",
    }
    assert file_of(tmp_path, BUILT_IN["udpos"].train, "en", "udpos").name == "en_ewt-ud-train.conllu"
    put(tmp_path / "udpos" / "en_gum-ud-test.conllu", "x")
    with pytest.raises(UserError, match="both of language 'en'; keep one"):
        files_by_language(tmp_path, BUILT_IN["udpos"].test, "udpos")


def test_a_folder_of_tasks_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no folder .*nowhere; name the one that has the task's files"):
        files_by_language(tmp_path / "nowhere", BUILT_IN["udpos"].test, "udpos")


def test_files_that_are_not_as_they_should_be(tmp_path):
    with pytest.raises(UserError, match="--task_data"):
        files_by_language(tmp_path, BUILT_IN["udpos"].test, "udpos")
    put(tmp_path / "udpos/test-qqq.tsv", "a\tX\n")
    with pytest.raises(UserError, match="'qqq' is no known language code"):
        files_by_language(tmp_path, BUILT_IN["udpos"].test, "udpos")
    put(tmp_path / "ner/swa/t", "a X\n")
    put(tmp_path / "ner/swh/t", "a X\n")
    with pytest.raises(UserError, match="both of language 'sw'"):
        files_by_language(tmp_path, ["ner/{lang}/t"], "ner")


def test_tasks_from_a_file_change_built_in_ones(tmp_path):
    path = put(
        tmp_path / "tasks.yaml", "udpos: {test: ['udpos/dev-{lang}.tsv']}\nmine: {kind: retrieval, test: ['{lang}.tsv']}\n"
    )
    tasks = load_tasks(["udpos", "mine", "xnli"], path)
    assert tasks["udpos"].test == ["udpos/dev-{lang}.tsv"]
    assert tasks["udpos"].train == BUILT_IN["udpos"].train
    assert tasks["mine"] == TaskSpec(kind="retrieval", test=["{lang}.tsv"])


def test_the_tasks_of_the_page_are_read(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    path = put(tmp_path / "tasks.yaml", re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    tasks = load_tasks(["udpos", "xnli", "news", "ntrex", "ner", "conll"], path)
    assert (tasks["conll"].label_column, tasks["ner"].train_language, tasks["xnli"].train_rows) == (4, "ha", (0, 2000))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine: {kind: tagging, test: [a], colour: red}", "colour"),
        ("mine: {test: [a]}", "kind"),
        ("[1]", "holds no tasks"),
        ("a: {", "is not YAML"),
    ],
)
def test_mistakes_in_a_tasks_file(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load_tasks(["mine"], put(tmp_path / "tasks.yaml", text))
    with pytest.raises(UserError, match="unknown task 'guess'"):
        load_tasks(["guess"])
