"""Items of text: the tokenizer's numbers, and whole runs of chat and stream_chat."""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from bot.domain import ChatMessage
from bot.engine.chatglm.text import respond
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from tests.engine.reference_tokenizer import CONTROL_TEXT, ReferenceTokenizer
from tests.golden.report import Golden
from tests.golden.runs import Choose, greedy, run
from tests.golden.sampling import CHAT, drawn_by_torch

Pairs = list[tuple[object, object]]


def check_all(golden: Golden) -> None:
    numbers = golden.json("tokenizer_golden.json")
    if numbers is None:
        golden.note("tokenizer", "this set has no tokenizer_golden.json")
    else:
        golden.run("tokenizer", partial(_tokenizer, golden, numbers))
        if "num_image_tokens_20000" in numbers:
            golden.run("tokenizer, first release", partial(_first_release, golden, numbers))
    golden.run("prompts", partial(_prompts, golden))
    chats = golden.json("chat_golden.json")
    if chats is None:
        golden.note("chat", "this set has no chat_golden.json")
    else:
        golden.run("chat", partial(_chats, golden, chats))


def _prompts(golden: Golden) -> None:
    reference = ReferenceTokenizer(golden.tokenizer)
    pairs: Pairs = []
    for number, text in enumerate(golden.facts.get("prompts", [])):
        pairs.append((reference.input_ids(text), golden.prompt(f"p{number}")))
    golden.same("goldens.json prompts", pairs)


def _tokenizer(golden: Golden, numbers: dict[str, Any]) -> None:
    ours = golden.tokenizer
    reference = ReferenceTokenizer(ours)
    cases = numbers["cases"]
    texts = [case["text"] for case in cases]
    golden.same("tokenizer ids", [(reference.ids(case["text"]), case["ids"]) for case in cases])
    golden.same("tokenizer input_ids", [(reference.input_ids(case["text"]), case["input_ids"]) for case in cases])
    golden.same("tokenizer sp_encode", [(ours.encode(case["text"]), case["sp_encode"]) for case in cases])
    golden.same(
        "tokenizer sp_encode_no_dummy_prefix",
        [(reference.ids_without_dummy_prefix(case["text"]), case["sp_encode_no_dummy_prefix"]) for case in cases],
    )
    golden.same("tokenizer tokens", [([ours.piece(token) for token in case["ids"]], case["tokens"]) for case in cases])
    golden.same("tokenizer decode", [(ours.decode(case["ids"]), case["decode"]) for case in cases])
    golden.same(
        "tokenizer decode_input_ids", [(ours.decode(case["input_ids"]), case["decode_input_ids"]) for case in cases]
    )
    golden.same(
        "tokenizer decode_input_ids_skip_special",
        [
            (reference.decode(case["input_ids"], skip_special=True), case["decode_input_ids_skip_special"])
            for case in cases
        ],
    )
    golden.same(
        "tokenizer, only control text is read differently",
        [
            (ours.encode(case["text"]), case["ids"])
            for case in cases
            if not any(control in case["text"] for control in CONTROL_TEXT)
        ],
    )
    _odd(golden, numbers, reference)
    _padding(golden, numbers, reference, texts)


def _odd(golden: Golden, numbers: dict[str, Any], reference: ReferenceTokenizer) -> None:
    ours = golden.tokenizer
    odd = numbers.get("decode_odd", [])
    golden.same("tokenizer decode_odd", [(ours.decode(case["ids"]), case["decode"]) for case in odd])
    golden.same(
        "tokenizer partial_decode",
        [
            ([ours.decode(case["ids"][:n]) for n in range(len(case["ids"]) + 1)], case["decode_prefixes"])
            for case in numbers.get("partial_decode", [])
        ],
    )
    wanted = numbers.get("attributes", {})
    found = reference.attributes()
    golden.same("tokenizer attributes", [(found[name], wanted[name]) for name in found if name in wanted])
    pieces = numbers.get("pieces_of_special_ids", {})
    golden.same("tokenizer special pieces", [(ours.piece(int(token)), piece) for token, piece in pieces.items()])


def _padding(golden: Golden, numbers: dict[str, Any], reference: ReferenceTokenizer, texts: list[str]) -> None:
    if "batch" in numbers:
        batch = numbers["batch"]
        rows = reference.padded(batch["texts"])
        golden.same(
            "tokenizer padding",
            [
                ([row.input_ids for row in rows], batch["input_ids"]),
                ([row.position_ids for row in rows], batch["position_ids"]),
                ([[row.masked] for row in rows], batch["attention_mask_true_is_masked"]),
            ],
        )
    # Of these the set has the ids only; the texts stand in the README of the first set.
    if "batch_max_length12" in numbers:
        (row,) = reference.padded(["你好 a b c"], length=12)
        wanted = numbers["batch_max_length12"]
        golden.same("tokenizer padding to 12", [([row.input_ids], wanted["input_ids"])])
    if "truncation_max_length6" in numbers:
        ids = reference.input_ids("你好 a b c", max_length=6)
        golden.same("tokenizer truncation to 6", [(ids, numbers["truncation_max_length6"]["input_ids"])])
    if "pair" in numbers:
        golden.same("tokenizer pair", [(reference.input_ids("a b", "c d"), numbers["pair"]["input_ids"])])


def _first_release(golden: Golden, numbers: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copyfile(golden.folder / "ice_text.model", folder / "ice_text.model")
        shifted = {
            "bos_token_id": golden.config.bos_token_id + 20000,
            "eos_token_id": golden.config.eos_token_id + 20000,
        }
        (folder / "config.json").write_text(json.dumps(shifted))
        reference = ReferenceTokenizer(ChatGLMTokenizer.load(folder))
    cases = numbers["num_image_tokens_20000"]["cases"]
    golden.same(
        "tokenizer, ids 20000 higher",
        [(reference.input_ids(case["text"]), case["input_ids"]) for case in cases]
        + [(reference.decode(case["input_ids"]), case["decode_input_ids"]) for case in cases],
    )


def _chats(golden: Golden, numbers: dict[str, Any]) -> None:
    ours = golden.tokenizer
    for case in numbers.get("chat", []):
        label = f"chat, {case['note']}"
        ids = ReferenceTokenizer(ours).input_ids(case["prompt_text"])
        messages = _messages(case)
        typed = any(control in case["prompt_text"] for control in CONTROL_TEXT)
        deltas = ours.detokenizer()
        made = _answer(golden, case, ids)
        golden.same(
            label,
            [
                (ids, case["prompt_ids"]),
                # Control text that was typed stays text with us, on purpose.
                (ours.prompt(messages) == ids, not typed),
                (made, case["output_ids"]),
                (ours.decode(made), case["raw_decode"]),
                (ours.complete(made), case["response"]),
                ("".join([*map(deltas.push, made), deltas.finish()]), case["response"]),
            ],
        )
    for case in numbers.get("stream", []):
        made = _answer(golden, case, ours.prompt(_messages(case)))
        # stream_chat keeps the last token to itself, we do not.
        seen = [ours.complete(made[:count]) for count in range(1, len(made))]
        golden.same(f"stream_chat, {case['note']}", [(seen, case["responses"])])
    tidied = numbers.get("process_response", [])
    golden.same("process_response", [(respond(case["input"]), case["output"]) for case in tidied])


def _messages(case: dict[str, Any]) -> list[ChatMessage]:
    messages: list[ChatMessage] = []
    for query, response in case["history"] or []:
        messages += [ChatMessage("user", query), ChatMessage("assistant", response)]
    return [*messages, ChatMessage("user", case["query"])]


def _answer(golden: Golden, case: dict[str, Any], ids: list[int]) -> list[int]:
    limits = case["kwargs"]
    steps = limits.get("max_new_tokens") or max(limits.get("max_length", 2048) - len(ids), 1)
    choose: Choose = greedy if limits.get("do_sample") is False else drawn_by_torch(CHAT, _seed(case["note"]))
    if case["force_step_token"]:
        at, token = case["force_step_token"]
        free = choose

        def forced(step: int, logits: Any) -> list[int]:
            return [token] if step + 1 == at else free(step, logits)

        choose = forced
    tokens: list[int] = run(golden.model, [ids], steps, choose).tokens[0].tolist()
    end = golden.config.eos_token_id
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def _seed(note: str) -> int:
    return int(note.partition("manual_seed(")[2].partition(")")[0])
