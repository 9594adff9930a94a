"""Alternative phrasings: "how do I …" is also "how can I …" and "tell me how to …"."""

from __future__ import annotations

import re
from random import Random

_ENGLISH: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        r"how do I (.+)",
        (
            "how can I {}",
            "how to {}",
            "how would I {}",
            "how should I {}",
            "tell me how to {}",
            "can you tell me how to {}",
            "show me how to {}",
            "please explain how to {}",
            "I want to {}",
            "I would like to {}",
            "I need to {}",
            "what do I do to {}",
            "what must I do to {}",
            "is there a way to {}",
            "what is the way to {}",
            "I want to know how to {}",
        ),
    ),
    (
        r"what is (.+)",
        (
            "what's {}",
            "whats {}",
            "tell me what {} is",
            "can you tell me what {} is",
            "please tell me what {} is",
            "I want to know what {} is",
            "do you know what {} is",
            "so what is {}",
        ),
    ),
    (
        r"what does (.+) do",
        ("what is {} for", "what does {} mean", "what's the use of {}", "explain {}", "what is the purpose of {}"),
    ),
    (
        r"(?:explain|tell me about) (.+)",
        ("can you explain {}", "please explain {}", "what about {}", "I want to know about {}"),
    ),
    (r"where (?:is|are) (.+)", ("where do I find {}", "where can I find {}", "how do I find {}", "where would {} be")),
    (
        r"can I (.+)",
        ("may I {}", "could I {}", "is it possible to {}", "am I able to {}", "I want to {}", "is there a way to {}"),
    ),
    (r"can you (.+)", ("could you {}", "are you able to {}", "will you {}", "would you {}", "I want you to {}")),
    (r"do you (.+)", ("I wonder if you {}", "tell me, do you {}", "and do you {}", "do you really {}")),
    (r"are you (.+)", ("so are you {}", "tell me, are you {}", "are you really {}", "I wonder if you are {}")),
    (r"which (.+)", ("what {}", "can you tell me which {}", "tell me which {}")),
    (
        r"((?:show|give|tell|write|make) .+)",
        ("please {}", "can you {}", "could you please {}", "I want you to {}", "would you {}", "now {}"),
    ),
    (
        r"((?:how|what|why|where|when|who|which|is|does) .+)",
        ("quick question: {}", "I have a question: {}", "tell me: {}", "can you tell me {}", "just curious, {}"),
    ),
)
_CHINESE: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        r"怎么(.+)",
        (
            "怎样{}",
            "如何{}",
            "请问怎么{}",
            "请问如何{}",
            "我想知道怎么{}",
            "能告诉我怎么{}吗",
            "该怎么{}",
            "我要怎么{}",
            "教我怎么{}",
            "怎么才能{}",
            "要怎么{}",
            "我想{}",
            "有办法{}吗",
        ),
    ),
    (
        r"什么是(.+)",
        (
            "{}是什么",
            "{}是啥",
            "请问什么是{}",
            "解释一下{}",
            "给我讲讲{}",
            "{}是什么意思",
            "介绍一下{}",
            "说说{}",
            "啥是{}",
        ),
    ),
    (r"(.+)是什么", ("{}是啥", "请问{}是什么", "{}是什么呢", "我想知道{}是什么", "告诉我{}是什么")),
    (r"(.+)有什么用", ("{}是干什么的", "{}是做什么的", "{}的作用是什么", "{}干嘛用的", "为什么要有{}")),
    (r"(.+)在哪里", ("{}在哪", "{}在哪儿", "请问{}在哪里", "怎么找到{}", "哪里可以找到{}", "{}在什么地方")),
    (r"可以(.+)吗", ("能{}吗", "能不能{}", "可不可以{}", "可以{}么", "是否可以{}", "我想{}", "能否{}")),
    (r"你会(.+)吗", ("你会不会{}", "你能{}吗", "你会{}么", "请问你会{}吗")),
    (r"你能(.+)吗", ("你能不能{}", "你可以{}吗", "你会{}吗", "你能{}么")),
    (r"你是(.+)吗", ("你是不是{}", "你是{}么", "请问你是{}吗", "难道你是{}吗")),
    (r"你有(.+)吗", ("你有没有{}", "你有{}么", "请问你有{}吗")),
    (r"支持(.+)吗", ("支不支持{}", "是否支持{}", "支持{}么", "请问支持{}吗", "你们支持{}吗")),
    (r"需要(.+)吗", ("需不需要{}", "要{}吗", "必须{}吗", "一定要{}吗")),
    (r"有哪些(.+)", ("都有哪些{}", "有什么{}", "列出{}", "有几种{}", "告诉我有哪些{}")),
    (r"(.+)多少(.*)", ("请问{}多少{}", "我想知道{}多少{}")),
    (r"为什么(.+)", ("为啥{}", "请问为什么{}", "怎么会{}", "为什么{}呢")),
    (r"((?:给我|写|讲|说|展示|列).+)", ("请{}", "能{}吗", "可以{}吗", "麻烦{}", "帮我{}", "我想让你{}")),
    (r"(.+)吗", ("{}么", "请问{}吗", "我想知道{}吗")),
)
_FRAMES = {
    language: tuple((re.compile(pattern, re.IGNORECASE), others) for pattern, others in frames)
    for language, frames in (("en", _ENGLISH), ("zh", _CHINESE))
}


def plain(question: str) -> str:
    """Normalise a question: lower case, without final punctuation."""
    return question.lower().strip("?!.？！。 ") or question


def reframed(question: str, language: str, rng: Random) -> str:
    """Rephrase a question; return it unchanged if no frame matches."""
    bare = question.rstrip("?!.？！。")
    fitting = [(match, others) for pattern, others in _FRAMES[language] if (match := pattern.fullmatch(bare))]
    if not fitting:
        return question
    match, others = rng.choice(fitting)
    return rng.choice(others).format(*match.groups()) + question[len(bare) :]
