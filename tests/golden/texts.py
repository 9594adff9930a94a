"""Golden items of text: the tokenizer, chat and stream_chat."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from bot.domain import ChatMessage
from bot.engine.chatglm.text import respond
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from tests.engine.reference_tokenizer import CONTROL_TEXT, ReferenceTokenizer
from tests.golden.report import Golden
from tests.golden.runs import Choose, greedy, run
from tests.golden.sampling import CHAT, sampled_by_torch

Pairs = list[tuple[object, object]]

_KNOWN = re.compile(
    r"set|num_image_tokens(_20000)?|cases|attributes|pieces_of_special_ids|(control|unknown)_pieces|byte_pieces_first_last"
    r"|partial_decode|decode_odd|decode_id_beyond_pieces|pair|batch|(batch|truncation)_max_length\d+|single_call_keys"
)
_KNOWN_CHATS = ("set", "chat", "stream", "process_response")


def check_all(golden: Golden) -> None:
    numbers = golden.json("tokenizer_golden.json")
    if numbers is None:
        golden.note("tokenizer", "tokenizer_golden.json is not in this set")
    else:
        golden.run("tokenizer", partial(_tokenizer, golden, numbers))
        if "num_image_tokens_20000" in numbers:
            golden.run("tokenizer, first release", partial(_first_release, golden, numbers))
    golden.run("prompts", partial(_prompts, golden))
    chats = golden.json("chat_golden.json")
    if chats is None:
        golden.note("chat", "chat_golden.json is not in this set")
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
    cases = numbers.get("cases", [])
    for field, found in {
        "ids": lambda case: reference.ids(case["text"]),
        "input_ids": lambda case: reference.input_ids(case["text"]),
        "sp_encode": lambda case: ours.encode(case["text"]),
        "sp_encode_no_dummy_prefix": lambda case: reference.ids_without_dummy_prefix(case["text"]),
        "tokens": lambda case: [ours.piece(token) for token in case["ids"]],
        "decode": lambda case: ours.decode(case["ids"]),
        "decode_input_ids": lambda case: ours.decode(case["input_ids"]),
        "decode_input_ids_skip_special": lambda case: reference.decode(case["input_ids"], skip_special=True),
    }.items():
        _same_field(golden, f"tokenizer {field}", cases, field, found)
    plain = [case for case in cases if not any(control in case["text"] for control in CONTROL_TEXT)]
    _same_field(golden, "tokenizer, only control text differs", plain, "ids", lambda case: ours.encode(case["text"]))
    _odd(golden, numbers, reference)
    _padding(golden, numbers, reference)
    for name in numbers:
        if not _KNOWN.fullmatch(name):
            golden.unknown(f"tokenizer_golden.json {name}")


def _same_field(golden: Golden, label: str, cases: list[Any], field: str, found: Callable[[Any], object]) -> None:
    """Compare a field of the cases that have it."""
    having = [case for case in cases if field in case]
    if having:
        golden.same(label, [(found(case), case[field]) for case in having])
    else:
        golden.note(label, "not in this set")


def _odd(golden: Golden, numbers: dict[str, Any], reference: ReferenceTokenizer) -> None:
    ours = golden.tokenizer
    odd = numbers.get("decode_odd", [])
    _same_field(golden, "tokenizer decode_odd", odd, "decode", lambda case: ours.decode(case["ids"]))
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
    surfaces = {token: ours.surface(token) for token in range(ours.vocabulary)}
    octets = [token for token, surface in surfaces.items() if isinstance(surface, bytes) and surface]
    kinds = {
        "control_pieces": [token for token, surface in surfaces.items() if not surface],
        "unknown_pieces": [token for token in surfaces if ours.piece(token) == "<unk>"],
        "byte_pieces_first_last": [octets[0], octets[-1]],
    }
    golden.same("tokenizer kinds of pieces", [(kinds[name], numbers[name]) for name in kinds if name in numbers])
    if "decode_id_beyond_pieces" in numbers:
        golden.same("tokenizer id beyond the pieces", [(_has(ours, numbers["decode_id_beyond_pieces"]["id"]), False)])
    if "single_call_keys" in numbers:
        golden.note("tokenizer single_call_keys", "the published tokenizer's return value; ours returns ids")


def _has(tokenizer: ChatGLMTokenizer, token: int) -> bool:
    try:
        tokenizer.piece(token)
    except IndexError:
        return False
    return True


def _padding(golden: Golden, numbers: dict[str, Any], reference: ReferenceTokenizer) -> None:
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
    # A set names the text of these ids only if it differs from the first set's.
    for name, wanted in numbers.items():
        text = wanted.get("text", "你好 a b c") if isinstance(wanted, dict) else ""
        if found := re.fullmatch(r"batch_max_length(\d+)", name):
            (row,) = reference.padded([text], length=int(found[1]))
            golden.same(f"tokenizer padding to {found[1]}", [([row.input_ids], wanted["input_ids"])])
        elif found := re.fullmatch(r"truncation_max_length(\d+)", name):
            ids = reference.input_ids(text, max_length=int(found[1]))
            golden.same(f"tokenizer truncation to {found[1]}", [(ids, wanted["input_ids"])])
        elif name == "pair":
            first, second = wanted.get("texts", ("a b", "c d"))
            golden.same("tokenizer pair", [(reference.input_ids(first, second), wanted["input_ids"])])


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
    label = "tokenizer, ids 20000 higher"
    _same_field(golden, f"{label}: input_ids", cases, "input_ids", lambda case: reference.input_ids(case["text"]))
    _same_field(golden, f"{label}: decode", cases, "decode_input_ids", lambda case: reference.decode(case["input_ids"]))


def _chats(golden: Golden, numbers: dict[str, Any]) -> None:
    for case in numbers.get("chat", []):
        golden.run(f"chat, {case['note']}", partial(_chat, golden, case))
    for case in numbers.get("stream", []):
        golden.run(f"stream_chat, {case['note']}", partial(_stream, golden, case))
    tidied = numbers.get("process_response", [])
    golden.same("process_response", [(respond(case["input"]), case["output"]) for case in tidied])
    for name in numbers:
        if name not in _KNOWN_CHATS:
            golden.unknown(f"chat_golden.json {name}")


def _chat(golden: Golden, case: dict[str, Any]) -> None:
    ours, prompt = golden.tokenizer, case["prompt_text"]
    ids = ReferenceTokenizer(ours).input_ids(prompt)
    typed = any(control in prompt for control in CONTROL_TEXT)
    deltas = ours.detokenizer()
    made = _answer(golden, case, ids)
    if made is None:
        return
    found = {
        "prompt_ids": ids,
        "output_ids": made,
        "raw_decode": ours.decode(made),
        "response": ours.complete(made),
    }
    golden.same(
        f"chat, {case['note']}",
        [
            *((found[name], case[name]) for name in found if name in case),
            # Deliberate difference: control text typed by users stays text.
            (ours.prompt(_messages(case)) == ids, not typed),
            ("".join([*map(deltas.push, made), deltas.finish()]), case["response"]),
        ],
    )


def _stream(golden: Golden, case: dict[str, Any]) -> None:
    ours = golden.tokenizer
    made = _answer(golden, case, ours.prompt(_messages(case)))
    if made is not None:
        # stream_chat drops the last token, we do not.
        seen = [ours.complete(made[:count]) for count in range(1, len(made))]
        golden.same(f"stream_chat, {case['note']}", [(seen, case["responses"])])


def _messages(case: dict[str, Any]) -> list[ChatMessage]:
    messages: list[ChatMessage] = []
    for query, response in case.get("history") or []:
        messages += [ChatMessage("user", query), ChatMessage("assistant", response)]
    return [*messages, ChatMessage("user", case["query"])]


def _answer(golden: Golden, case: dict[str, Any], ids: list[int]) -> list[int] | None:
    """Return our model's answer; None if the set does not say how its answer was sampled."""
    limits = case.get("kwargs", {})
    steps = limits.get("max_new_tokens") or max(limits.get("max_length", 2048) - len(ids), 1)
    # One token more than the published answer shows any difference.
    steps = min(steps, len(case.get("output_ids") or case.get("responses", [])) + 2)
    seed = re.search(r"manual_seed\((\d+)\)", case["note"])
    choose: Choose
    if limits.get("do_sample") is False:
        choose = greedy
    elif seed:
        choose = sampled_by_torch(CHAT, int(seed[1]))
    else:
        golden.note(f"chat, {case['note']}", "the set does not name its seed")
        return None
    if case.get("force_step_token"):
        at, token = case["force_step_token"]
        free = choose

        def forced(step: int, logits: Tensor) -> list[int]:
            return [token] if step + 1 == at else free(step, logits)

        choose = forced
    tokens: list[int] = run(golden.model, [ids], steps, choose).tokens[0].tolist()
    end = golden.config.eos_token_id
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens
