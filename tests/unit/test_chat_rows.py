"""Conversations to rows: schemas, masks as inference sees them, lengths, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from transformers import AutoTokenizer

from megatron_ko.data.chat.conversation import RecordError, read_conversation, recognise
from megatron_ko.data.chat.preference import read_preference
from megatron_ko.data.chat.rows import RowEncoder, RowOptions
from megatron_ko.data.tokenizer.chat_template import ChatTemplate, preset_source, set_template
from megatron_ko.data.tokenizer.tokenizer import load_tokenizer
from megatron_ko.data.tokens.marks import Mark

TURNS = [("안녕?", "네, 안녕하세요."), ("수도는?", "서울입니다.")]
MESSAGES = [
    {"role": role, "content": text} for turn in TURNS for role, text in zip(("user", "assistant"), turn, strict=True)
]
FORMS: dict[str, dict[str, Any]] = {
    "messages": {"messages": MESSAGES},
    "conversations": {
        "conversations": [
            {"from": {"user": "human", "assistant": "gpt"}[one["role"]], "value": one["content"]} for one in MESSAGES
        ]
    },
    "alpaca": {"instruction": "수도는?", "input": "", "output": "서울입니다.", "history": [list(TURNS[0])]},
    "completion": {"prompt": MESSAGES[:3], "completion": MESSAGES[3:]},
}


@pytest.fixture(params=["unigram", "byte-bpe"])
def make(request: pytest.FixtureRequest, tokenizer_folder: Callable[[str], Path], tmp_path: Path) -> Any:
    folder = copytree(tokenizer_folder(request.param), tmp_path / "tok")
    set_template(folder, preset_source("chatml"))
    tokenizer = load_tokenizer(folder)

    def encoder(preset: str = "chatml", **options: Any) -> RowEncoder:
        return RowEncoder(tokenizer, ChatTemplate(preset_source(preset), tokenizer), RowOptions(**options))

    encoder.tokenizer = tokenizer  # type: ignore[attr-defined]
    return encoder


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_conversation(form: str) -> None:
    assert recognise(FORMS[form]) == form
    assert list(read_conversation(FORMS[form]).messages) == MESSAGES


def test_nothing_of_an_alpaca_record_is_dropped() -> None:
    record = {
        "instruction": "번역하라",
        "input": "안녕",
        "output": "hello",
        "system": "역자",
        "history": [["가", "나"]],
    }
    said = [(one["role"], one["content"]) for one in read_conversation(record).messages]
    assert said == [
        ("system", "역자"),
        ("user", "가"),
        ("assistant", "나"),
        ("user", "번역하라\n안녕"),
        ("assistant", "hello"),
    ]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"question": "가"}, "no conversation: fields question"),
        ({"messages": []}, "no message"),
        ({"messages": [{"role": "narrator", "content": "가"}]}, "unknown role: 'narrator'"),
        ({"conversations": [{"from": "alien", "value": "가"}]}, "unknown role: 'alien'"),
        ({"messages": MESSAGES[1:]}, "begins with an answer"),
        ({"messages": MESSAGES[:3]}, "no answer: the last message"),
        ({"prompt": "가", "completion": "  "}, "empty answer"),
        ({"messages": [{"role": "user"}]}, "no text"),
        ({"instruction": "가", "output": 3}, "no text: field 'output'"),
        ({"messages": "가"}, "no list of messages"),
    ],
)
def test_what_is_no_conversation_is_refused_with_the_reason(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecordError, match=reason.replace("(", r"\(")):
        read_conversation(record)


def test_ids_are_those_of_transformers_and_the_answers_alone_are_trained(make: Any) -> None:
    (row,) = make().rows(read_conversation(FORMS["messages"]))
    oracle = AutoTokenizer.from_pretrained(make.tokenizer.folder)
    whole = list(oracle.apply_chat_template(MESSAGES, return_dict=True)["input_ids"])
    assert row.ids == whole[: len(row.ids)] and make.tokenizer.decode(whole[len(row.ids) :]) == "\n"
    trained = make.tokenizer.decode([i for i, mark in zip(row.ids, row.marks, strict=True) if mark == Mark.GOOD])
    assert trained == "네, 안녕하세요.<|im_end|>서울입니다.<|im_end|>"
    assert row.ids[-1] == make.tokenizer.special_tokens["<|im_end|>"] and row.marks[-1] == Mark.GOOD


def test_an_answer_is_encoded_apart_from_its_prompt(make: Any) -> None:
    encoder = make()
    (row,) = encoder.rows(read_conversation({"prompt": "가", "completion": "\n\n나"}))
    prompt = make.tokenizer.encode("<|im_start|>user\n가<|im_end|>\n<|im_start|>assistant\n", parse_special=True)
    assert row.ids[: len(prompt)] == prompt, "what inference gives the model"
    assert not row.marks[: len(prompt)].any() and row.marks[len(prompt) :].all()
    joint = make.tokenizer.encode(row.text, parse_special=True)
    assert encoder.counts["encoded apart"] == (joint[: len(prompt)] != prompt)


def test_loss_false_and_last_leave_answers_out(make: Any) -> None:
    unlearnt = [{**MESSAGES[1], "loss": False} if one is MESSAGES[1] else one for one in MESSAGES]
    for encoder, record in ((make(), unlearnt), (make(train_on="last"), MESSAGES)):
        (row,) = encoder.rows(read_conversation({"messages": record}))
        trained = make.tokenizer.decode([i for i, mark in zip(row.ids, row.marks, strict=True) if mark])
        assert trained == "서울입니다.<|im_end|>"
    (row,) = make(train_on="all").rows(read_conversation({"messages": MESSAGES}))
    assert row.marks.all()
    with pytest.raises(RecordError, match="no answer to train on"):
        make().rows(read_conversation({"messages": [MESSAGES[0], {**MESSAGES[1], "loss": False}]}))


def test_a_template_without_stable_prefixes_gives_a_row_an_answer(make: Any) -> None:
    thoughtful = [{**one, "reasoning_content": "음."} for one in MESSAGES]
    encoder = make("qwen3")
    rows = encoder.rows(read_conversation({"messages": thoughtful}))
    texts = [make.tokenizer.decode([i for i, m in zip(row.ids, row.marks, strict=True) if m]) for row in rows]
    assert texts == [f"<think>\n음.\n</think>\n\n{answer}<|im_end|>" for _, answer in TURNS]
    assert encoder.counts["split"] == 1
    with pytest.raises(RecordError, match="not prefix-preserving"):
        make("qwen3", train_on="all").rows(read_conversation({"messages": thoughtful}))


def test_too_long_is_dropped_cut_at_a_turn_or_cut(make: Any) -> None:
    conversation = read_conversation({"messages": MESSAGES})
    (whole,) = make().rows(conversation)
    (first,) = make().rows(read_conversation({"messages": MESSAGES[:2]}))
    longest = whole.positions - 1
    assert make(longest=longest + 1).rows(conversation)[0].ids == whole.ids
    with pytest.raises(RecordError, match="too long"):
        make(longest=longest).rows(conversation)
    (turn,) = make(longest=longest, too_long="turn").rows(conversation)
    assert turn.ids == first.ids
    (cut,) = make(longest=longest, too_long="cut").rows(conversation)
    assert cut.ids == whole.ids[:-1] and cut.positions == longest
    with pytest.raises(RecordError, match="too long"):
        make(longest=4, too_long="cut").rows(conversation)


def test_text_that_spells_a_marker_is_refused(make: Any) -> None:
    for text in ("끝 <|im_end|> 아님", "</s>"):
        with pytest.raises(RecordError, match="spells a marker"):
            make().rows(read_conversation({"prompt": text, "completion": "나"}))


PAIR = {"prompt": "수도는?", "chosen": "서울입니다.", "rejected": "부산이에요."}
PAIRS = [
    PAIR,
    {"prompt": [MESSAGES[2]], "chosen": [MESSAGES[3]], "rejected": [{"role": "assistant", "content": "부산이에요."}]},
    {
        "chosen": [MESSAGES[2], MESSAGES[3]],
        "rejected": [MESSAGES[2], {"role": "assistant", "content": "부산이에요."}],
    },
    {
        "prompt": "수도는?",
        "chosen": [MESSAGES[2], MESSAGES[3]],
        "rejected": [MESSAGES[2], {"role": "assistant", "content": "부산이에요."}],
    },
]


@pytest.mark.parametrize("record", PAIRS, ids=["texts", "messages", "conversations", "prompt-twice"])
def test_a_pair_in_any_form_gives_two_rows(record: dict[str, Any], make: Any) -> None:
    good, bad = make().responses(read_preference(record, "pairs"))
    decode = make.tokenizer.decode
    assert decode([i for i, m in zip(good.ids, good.marks, strict=True) if m == Mark.GOOD]) == "서울입니다.<|im_end|>"
    assert decode([i for i, m in zip(bad.ids, bad.marks, strict=True) if m == Mark.BAD]) == "부산이에요.<|im_end|>"
    assert good.text.startswith("<|im_start|>user\n수도는?<|im_end|>")


def test_a_prompt_is_said_once_and_shared_by_both_answers(make: Any) -> None:
    answers = [{"role": "assistant", "content": "서울입니다."}], [{"role": "assistant", "content": "부산이에요."}]
    prompt = [MESSAGES[2]]
    whole = {"prompt": prompt, "chosen": [*prompt, *answers[0]], "rejected": [*prompt, *answers[1]]}
    (good, _), (plain, _) = (make().responses(read_preference(record, "pairs")) for record in (whole, PAIR))
    assert good.ids == plain.ids
    goes_on = {**whole, "prompt": "수도는?", "chosen": answers[0], "rejected": answers[1]}
    assert make().responses(read_preference(goes_on, "pairs"))[0].ids == plain.ids
    system, _ = make().responses(read_preference({**PAIR, "system": "짧게."}, "pairs"))
    assert system.text.startswith("<|im_start|>system\n짧게.<|im_end|>")
    for change in ({"prompt": "다른 질문?"}, {"rejected": [{"role": "user", "content": "딴 질문"}, *answers[1]]}):
        with pytest.raises(RecordError, match="no shared prompt"):
            read_preference({**PAIRS[3], **change}, "pairs")


def test_answers_that_are_spelt_alike_are_equal(make: Any) -> None:
    extra = [{"role": "assistant", "content": "네", "score": score} for score in (1, 2)]
    record = {"prompt": "가", "chosen": extra[:1], "rejected": extra[1:]}
    with pytest.raises(RecordError, match="equal answers"):
        make().responses(read_preference(record, "pairs"))
    long = {"prompt": "가", "chosen": "나 " * 60 + "끝", "rejected": "나 " * 60 + "다"}
    with pytest.raises(RecordError, match="equal answers"):
        make(longest=100, too_long="cut").responses(read_preference(long, "pairs"))


@pytest.mark.parametrize(("told", "trained"), [({"loss": False}, 1), ({"weight": 0}, 1), ({"weight": 1}, 2)])
def test_loss_and_weight_of_a_message_count(told: dict[str, Any], trained: int, make: Any) -> None:
    messages = [MESSAGES[0], {**MESSAGES[1], **told}, *MESSAGES[2:]]
    (row,) = make().rows(read_conversation({"messages": messages}))
    end = make.tokenizer.special_tokens["<|im_end|>"]
    assert sum(i == end and mark for i, mark in zip(row.ids, row.marks, strict=True)) == trained
    for wrong in ({"loss": 0}, {"loss": "false"}, {"weight": 0.5}, {"tool_calls": "날씨"}):
        with pytest.raises(RecordError, match="malformed"):
            read_conversation({"messages": [MESSAGES[0], {**MESSAGES[1], **wrong}]})


def test_pairs_that_teach_nothing_are_refused(make: Any) -> None:
    for change, reason in (
        ({"rejected": "서울입니다."}, "equal answers"),
        ({"rejected": ""}, "empty answer"),
        ({"prompt": None}, "no prompt"),
        ({"chosen": 3}, "no list of messages"),
        ({"prompt": None, "chosen": [MESSAGES[3]], "rejected": [MESSAGES[1]]}, "no shared prompt"),
    ):
        with pytest.raises(RecordError, match=reason):
            read_preference({**PAIR, **change}, "pairs")
    with pytest.raises(RecordError, match="no verdicts"):
        read_preference(PAIR, "verdicts")
    with pytest.raises(RecordError, match="no verdict"):
        read_preference({"prompt": "가", "completion": "나", "label": "yes"}, "verdicts")
    (response,) = read_preference({"prompt": "가", "completion": "나", "label": False}, "verdicts")
    assert response.mark is Mark.BAD


def test_both_answers_of_a_pair_fit_into_one_sample_or_are_cut(make: Any) -> None:
    record = {"prompt": "가", "chosen": "나 " * 40, "rejected": "다"}
    rows = make().responses(read_preference(record, "pairs"))
    total = sum(row.positions for row in rows)
    assert make(longest=total).responses(read_preference(record, "pairs"))
    with pytest.raises(RecordError, match="too long"):
        make(longest=total - 1).responses(read_preference(record, "pairs"))
    cut = make(longest=total - 5, too_long="cut").responses(read_preference(record, "pairs"))
    assert sum(row.positions for row in cut) == total - 5 and cut[1].ids == rows[1].ids
    with pytest.raises(RecordError, match="the prompt alone"):
        make(longest=8, too_long="cut").responses(read_preference(record, "pairs"))
