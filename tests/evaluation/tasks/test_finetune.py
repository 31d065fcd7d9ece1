"""Fine-tuning from end to end on tiny tasks: learnt in English, scored everywhere, with seeds and intervals."""

from __future__ import annotations

import random

import pytest
import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.measures.transfer import interval, transfer_table
from dist_metaxlm.evaluation.resume.learning import arguments
from dist_metaxlm.evaluation.tasks.files import Question, TaggedSentence
from dist_metaxlm.evaluation.tasks.finetune import Settings, TaskData, read_settings
from dist_metaxlm.evaluation.tasks.questions import Questions
from dist_metaxlm.evaluation.tasks.run import HEADS, TaskOptions, evaluate_tasks
from dist_metaxlm.evaluation.tasks.spec import BUILT_IN
from dist_metaxlm.evaluation.tasks.tagging import IGNORED, Tagging

FAST = ("learning_rate=0.01", "epochs=4", "batch_size=16")


def test_tagging_is_learnt_in_english_and_scored_in_every_language(model_folder, task_data):
    torch.set_num_threads(1)
    options = TaskOptions(task_data, seeds=(1, 2), settings=FAST)
    result = evaluate_tasks(model_folder, ["udpos"], options)["udpos"]
    table = result["table"]
    assert table["source"]["mean"] > 0.85
    assert set(table["languages"]) == {"de", "en", "th"}
    assert table["gap"]["mean"] == pytest.approx(table["source"]["mean"] - table["others"]["mean"])
    assert table["languages"]["th"]["script"] == "Thai"
    assert table["others"]["half_width"] is not None
    assert set(table["scripts"]) == {"Latin", "Thai"}
    assert result["examples"]["test"] == {"de": 20, "en": 20, "th": 20}
    assert set(result["scores"][0]["de"]) == {"span_f1", "precision", "recall", "token_accuracy"}


def test_classification_is_learnt(model_folder, task_data):
    torch.set_num_threads(1)
    options = TaskOptions(task_data, seeds=(3,), settings=FAST, languages=("th", "fr"))
    lines: list[str] = []
    result = evaluate_tasks(model_folder, ["xnli"], options, lines.append)["xnli"]
    assert "xnli: no test file for fr; the means are without" in lines
    assert lines[0] == "xnli: 80 examples in 'en' to learn, 4 epochs, 1 seed, 2 languages to test"
    assert [line.split(":")[0] for line in lines[1:6]] == [
        *(f"xnli, seed 3, epoch {n} of 4" for n in range(1, 5)),
        "xnli, seed 3",
    ]
    assert result["metric"] == "accuracy"
    assert result["table"]["source"]["mean"] > 0.8
    assert set(result["table"]["languages"]) == {"en", "th"}
    assert result["table"]["source"]["half_width"] is None


def test_questions_are_learnt(model_folder, task_data):
    torch.set_num_threads(1)
    longer = ("learning_rate=0.01", "epochs=8", "batch_size=16", "max_length=24", "stride=4")
    options = TaskOptions(task_data, seeds=(1,), settings=longer)
    result = evaluate_tasks(model_folder, ["xquad"], options)["xquad"]
    assert result["table"]["source"]["mean"] > 0.8
    assert set(result["table"]["languages"]) == {"de", "en", "th"}
    assert result["scores"][0]["en"]["exact_match"] <= result["scores"][0]["en"]["f1"] <= 1


def test_with_keep_going_other_tasks_still_run(model_folder, task_data):
    options = TaskOptions(task_data, seeds=(1,), keep_going=True)
    results = evaluate_tasks(model_folder, ["pawsx", "nonsense", "tatoeba"], options)
    assert "no file" in results["pawsx"]["error"]
    assert "unknown task 'nonsense'" in results["nonsense"]["error"]
    assert results["tatoeba"]["kind"] == "retrieval"
    with pytest.raises(UserError, match="task pawsx: no file"):
        evaluate_tasks(model_folder, ["pawsx"], TaskOptions(task_data))


@pytest.mark.parametrize(
    ("name", "rows", "labels"),
    [
        ("udpos", "a\tNOUN\n\nb\tX\n\nc\tVERB\nd\tNOUN\n", '["NOUN", "VERB", "X"]'),
        ("xnli", "a\tb\tneutral\nc\td\tneutral\ne\tf\tnuetral\n", '["neutral", "nuetral"]'),
    ],
)
def test_labels_are_declared_and_not_taken_from_the_training_file(tmp_path, name, rows, labels):
    spec = BUILT_IN[name].model_copy(update={"labels": []})
    (tmp_path / name).mkdir()
    for part in ("train-en", "dev-en", "test-de"):
        (tmp_path / name / f"{part}.tsv").write_text(rows, encoding="utf-8")
    with pytest.raises(UserError) as refused:
        TaskData("mine", spec, HEADS[spec.kind](spec), tmp_path, Settings())
    assert str(refused.value).startswith(f"task mine: the task declares no labels; put `labels: {labels}` into its entry")
    assert "NOUN 2, VERB 1, X 1" in str(refused.value) or "neutral 2, nuetral 1" in str(refused.value)
    declared = spec.model_copy(update={"labels": ["NOUN", "VERB", "X", "neutral"]})
    if name == "udpos":
        assert len(TaskData("mine", declared, Tagging(declared), tmp_path, Settings(max_train=1)).train) == 1
    else:
        with pytest.raises(UserError, match=r"train-en\.tsv, line 3 has the label 'nuetral'"):
            TaskData("mine", declared, HEADS[spec.kind](declared), tmp_path, Settings())


def test_bad_labels_are_found_before_training(task_data, tmp_path):
    (tmp_path / "udpos").mkdir()
    for name, text in (("train-en", "a\tNOUN\n"), ("dev-en", "a\tNOUN\n"), ("test-de", "a\tNAME\n")):
        (tmp_path / "udpos" / f"{name}.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"test-de\.tsv, line 1 has the label 'NAME'"):
        TaskData("udpos", BUILT_IN["udpos"], Tagging(BUILT_IN["udpos"]), tmp_path, Settings())


def test_long_sentences_go_on_and_every_word_has_one_label(model_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model_folder))
    head = Tagging(BUILT_IN["udpos"])
    rng = random.Random(1)
    tags = [rng.choice(head.labels) for _ in range(40)]
    sentence = TaggedSentence([rng.choice(["house", "unbekannterwort", "บ้าน"]) for _ in range(40)], tags)
    features = head.features([sentence], tokenizer, Settings(max_length=24))
    assert len(features) > 1
    assert all(len(feature["input_ids"]) <= 24 for feature in features)
    assert [head.labels[label] for f in features for label in f["labels"] if label != IGNORED] == tags
    perfect = [torch.tensor([max(label, 0) for label in feature["labels"]]) for feature in features]
    assert head.scores([sentence], features, perfect, "en")["token_accuracy"] == 1.0


def test_answers_are_found_again_in_windows(model_folder):
    import numpy as np
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model_folder))
    context = " ".join(["house sees dog", "Haus  nimmt\tStein", "หมาเห็นบ้าน", "river café e\u0301"] * 4)
    head = Questions(BUILT_IN["xquad"])
    for answer in ("nimmt\tStein", "บ้าน", "café"):
        example = Question("1", "dog " * 90, context, [answer], [context.rindex(answer)])
        features = head.features([example], tokenizer, Settings(max_length=48, stride=8))
        assert len(features) > 1
        starts = [np.full(len(f["input_ids"]), -9.0) for f in features]
        ends = [row.copy() for row in starts]
        holding = [n for n, f in enumerate(features) if f["start_positions"]]
        assert holding
        for n in holding:
            starts[n][features[n]["start_positions"]] = ends[n][features[n]["end_positions"]] = 9.0
        scores = head.scores([example], features, (starts, ends), "en")
        assert scores["f1"] > 0.6, (answer, scores)


def test_a_question_in_bytes_is_cut_to_its_tokens(model_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model_folder))
    example = Question("1", "नमस्तेदुनिया" * 9, "house sees dog " * 30, ["dog"], [11])
    features = Questions(BUILT_IN["xquad"]).features([example], tokenizer, Settings(max_length=40, stride=30))
    assert len(features) > 1
    assert all(len(feature["input_ids"]) <= 40 for feature in features)
    assert sum(span is not None for span in features[0]["_spans"]) >= 25


def test_settings():
    assert read_settings("questions", []).stride == 128
    assert read_settings("tagging", ["epochs=2", "learning_rate=1e-3"]).learning_rate == 1e-3
    for override, message in (("epoch=3", "not key=value with a key of"), ("epochs=0", "epochs"), ("epochs", "key=value")):
        with pytest.raises(UserError, match=message):
            read_settings("tagging", [override])


def test_intervals_are_students():
    known = interval([0.5, 0.6, 0.7])
    # t(0.975, 2) = 4.3027; deviation 0.1; 4.3027 * 0.1 / sqrt(3)
    assert known == {"mean": pytest.approx(0.6), "half_width": pytest.approx(0.24841, abs=1e-4), "n": 3}
    assert interval([0.5])["half_width"] is None


def test_the_gap_is_paired_by_seed():
    table = transfer_table(
        [{"en": 0.9, "de": 0.7, "ru": 0.5}, {"en": 0.8, "de": 0.6, "ru": 0.4}],
        {"en": "Latin", "de": "Latin", "ru": "Cyrillic"},
    )
    assert table["gap"]["mean"] == pytest.approx(0.3)
    assert table["gap"]["half_width"] == pytest.approx(0.0, abs=1e-9)
    assert table["scripts"]["Cyrillic"]["mean"] == pytest.approx(0.45)
    alone = transfer_table([{"de": 0.5}], {"de": "Latin"})
    assert alone["source"] is None
    assert alone["gap"] is None


def test_several_gpus_do_not_make_the_batch_larger(tmp_path, monkeypatch):
    import transformers

    monkeypatch.setattr(transformers.TrainingArguments, "n_gpu", property(lambda own: vars(own).get("_n_gpu") or 8))
    assert arguments(str(tmp_path / "before"), "f1", Settings(batch_size=16), 1)._n_gpu == 1
