"""The questions of `real_models`: three sets of our own making, and public ones that are read from a folder.

*printed*: what a few lines of Python print. *raises*: which exception they raise. *modules*: which module of Python's
standard library has a name. They are made by code, from a seed, with answers that Python itself gives, so there are as
many as wanted and nobody's licence stands in the way.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import io
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from confcascade import TokenProbability
from confcascade.bench.questions import read_examples
from confcascade.bench.questions.prompts import Prompt
from confcascade.bench.questions.splitting import sample
from confcascade.extending import Signal
from confcascade.graders import ChoiceLetter, ContainsAny, Function, Grader, Numeric
from confcascade.graders.example import Example

# ---------------------------------------------------------------------- what does it print

WORDS = "apple river stone cloud green table music north light paper tiger ocean bread seven chair house".split()


def _numbers(rng: random.Random, least: int = 4, most: int = 6) -> list[int]:
    return [rng.randint(1, 20) for _ in range(rng.randint(least, most))]


def _slices(rng: random.Random) -> str:
    word, start = rng.choice(WORDS), rng.randint(0, 2)
    kind = rng.choice(["{w}[{a}:{b}]", "{w}[{a}:]", "{w}[:{b}]", "{w}[::-1]", "{w}[-{c}:]", "{w}[{a}]"])
    text = kind.format(w="word", a=start, b=start + rng.randint(1, 3), c=rng.randint(1, 3))
    return f'word = "{word}"\nprint({text})'


def _methods(rng: random.Random) -> str:
    first, second = rng.sample(WORDS, 2)
    letter = rng.choice(first)
    return rng.choice(
        [
            f'print("{first}".upper())',
            f'print("{first} {second}".title())',
            f'print("{first}".replace("{letter}", "-"))',
            f'print("{first}".count("{letter}"))',
            f'print("{first}".find("{letter}"))',
            f'print("-".join(["{first}", "{second}"]))',
            f'print("{first} {second}".split()[1])',
            f'print(len("{first}" + "{second}"))',
            f'print("{first}".startswith("{first[: rng.randint(1, 3)]}"))',
            f'print("{first}" * {rng.randint(2, 3)})',
            f'print(sorted("{first}")[0])',
        ]
    )


def _lists(rng: random.Random) -> str:
    numbers = _numbers(rng)
    tail = rng.choice(
        [
            "print(sum(numbers))",
            "print(max(numbers) - min(numbers))",
            "print(sorted(numbers))",
            "print(numbers[-1])",
            "print(numbers[1:3])",
            "print(len(numbers))",
            f"numbers.append({rng.randint(1, 20)})\nprint(numbers)",
            "numbers.pop()\nprint(numbers)",
            "numbers.reverse()\nprint(numbers)",
            f"print({rng.choice(numbers)} in numbers)",
            f"print([n for n in numbers if n % 2 == {rng.randint(0, 1)}])",
            f"print([n * {rng.randint(2, 4)} for n in numbers])",
            f"print(sum(n for n in numbers if n > {rng.randint(5, 12)}))",
        ]
    )
    return f"numbers = {numbers}\n{tail}"


def _arithmetic(rng: random.Random) -> str:
    a, b, c = rng.randint(10, 99), rng.randint(2, 9), rng.randint(2, 9)
    return rng.choice(
        [
            f"print({a} // {b})",
            f"print({a} % {b})",
            f"print({a} + {b} * {c})",
            f"print(({a} - {b}) * {c})",
            f"print({b} ** {rng.randint(2, 3)})",
            f"x = {a}\nx += {b}\nx *= 2\nprint(x)",
            f"a, b = {a}, {b}\na, b = b, a\nprint(a - b)",
            f"print({a} > {rng.randint(10, 99)} and {b} < {c})",
            f"print(abs({b} - {a}))",
            f"print(divmod({a}, {b}))",
        ]
    )


def _dictionaries(rng: random.Random) -> str:
    keys = rng.sample(WORDS, 3)
    values = [rng.randint(1, 20) for _ in keys]
    pairs = ", ".join(f'"{key}": {value}' for key, value in zip(keys, values, strict=True))
    key = rng.choice(keys)
    tail = rng.choice(
        [
            f'print(stock["{key}"])',
            "print(sum(stock.values()))",
            f'stock["{key}"] += {rng.randint(1, 9)}\nprint(stock["{key}"])',
            f'print(stock.get("{rng.choice(WORDS)}", 0))',
            "print(sorted(stock))",
            "print(max(stock, key=stock.get))",
            f'del stock["{key}"]\nprint(len(stock))',
            "print(list(stock.values()))",
        ]
    )
    return f"stock = {{{pairs}}}\n{tail}"


def _loops(rng: random.Random) -> str:
    n, step, start = rng.randint(3, 7), rng.randint(2, 4), rng.randint(0, 5)
    return rng.choice(
        [
            f"total = {start}\nfor i in range({n}):\n    total += i\nprint(total)",
            f"total = 0\nfor i in range({start}, {start + n}, {step}):\n    total += i\nprint(total)",
            f"x = {n * 10}\nwhile x > {start + 5}:\n    x //= 2\nprint(x)",
            f"found = []\nfor i in range({n + 3}):\n    if i % {step} == 0:\n        found.append(i)\nprint(found)",
            f"n = 0\nfor letter in {rng.choice(WORDS)!r}:\n    if letter in 'aeiou':\n        n += 1\nprint(n)",
            f"x = 1\nfor _ in range({n}):\n    x = x * 2 + {rng.randint(0, 2)}\nprint(x)",
        ]
    )


def _functions(rng: random.Random) -> str:
    a, b, n = rng.randint(2, 9), rng.randint(1, 9), rng.randint(3, 7)
    return rng.choice(
        [
            f"def f(x, y={b}):\n    return x * y + 1\n\nprint(f({a}))",
            f"def f(n):\n    return 1 if n < 2 else n * f(n - 1)\n\nprint(f({n}))",
            f"def f(n):\n    return n if n < 2 else f(n - 1) + f(n - 2)\n\nprint(f({n}))",
            f"def f(*args):\n    return len(args) + {a}\n\nprint(f({', '.join(map(str, range(b % 4 + 1)))}))",
            f"f = lambda x: x ** 2 - {a}\nprint(f({b}))",
            f"def f(items):\n    return [x for x in items if x > {b}]\n\nprint(f({_numbers(rng)}))",
            f"def f(x):\n    if x > {a * 2}:\n        return 'big'\n    return 'small'\n\nprint(f({b * 2}))",
            f"def f(text):\n    return text[0].upper() + text[1:]\n\nprint(f({rng.choice(WORDS)!r}))",
        ]
    )


TEMPLATES: Mapping[str, Callable[[random.Random], str]] = {
    "slices": _slices,
    "methods": _methods,
    "lists": _lists,
    "arithmetic": _arithmetic,
    "dictionaries": _dictionaries,
    "loops": _loops,
    "functions": _functions,
}


def printed(count: int, seed: int = 0) -> list[Example]:
    """What do a few lines of Python print? Each question once, the kinds in turn."""
    rng, found, kinds = random.Random(seed), {}, list(TEMPLATES)
    turn = 0
    while len(found) < count:
        kind = kinds[turn % len(kinds)]
        turn += 1
        code = TEMPLATES[kind](rng)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(code, {})
        answer = said.getvalue().rstrip("\n")
        if answer and code not in found:
            found[code] = Example(code, references=(answer,), group=kind)
    return list(found.values())


# ---------------------------------------------------------------------- which exception does it raise

NAMES = "total count items value index price user order limit result".split()


def _raising(rng: random.Random) -> str:
    """A few lines that may raise, or may not: executing them says."""
    word, other = rng.sample(WORDS, 2)
    name, second = rng.sample(NAMES, 2)
    n, m = rng.randint(1, 9), rng.randint(2, 9)
    numbers = [rng.randint(1, 20) for _ in range(rng.randint(2, 4))]
    return rng.choice(
        [
            f'{name} = int("{word}")',
            f'{name} = float("{word}")',
            f"{name} = {n * m} / ({n} - {n})",
            f"{name} = {numbers}\nprint({name}[{len(numbers) + rng.randint(-1, 2)}])",
            f'{name} = {{"{word}": {n}}}\nprint({name}["{rng.choice([word, other])}"])',
            f'{name} = "{word}" + {n}',
            f'{name} = "{word}"\n{name}[0] = "x"',
            f"{name} = ({n}, {m})\n{name}[0] = {n + 1}",
            f"{name} = {n}\nprint({rng.choice([name, second])})",
            f"{name} = None\nprint({name}.upper())",
            f"{name} = {numbers}\n{name}.remove({rng.choice([numbers[0], 99])})",
            f"{name} = {numbers}\n{name}.push({n})",
            f"assert {n} > {m}",
            f"{name} = iter([])\nnext({name})",
            f'open("/{word}/{other}.txt")',
            f"import {word}_{other}",
            f'raise RuntimeError("{word}")',
            f'"{word}é".encode("ascii")',
            f"{name}, {second} = {numbers}",
            f"def f({name}):\n    return {name} * {n}\n\nf({', '.join(map(str, numbers[: rng.randint(1, 2)]))})",
            f"def f({name}):\n    return f({name} + 1)\n\nf({n})",
            f'{name} = {{}}\n{name}[[{n}, {m}]] = "{word}"',
            f"{name} = {n}\nfor {second} in {name}:\n    print({second})",
            f"{name} = {n}\nprint(len({name}))",
            f"sum([{n}, '{word}'])",
            f"{name} = 'value: {{0}} {{1}}'.format({n})",
            f'{name} = {{"{word}", "{other}"}}\nprint({name}[0])',
            f"{name} = {n}\n{name}()",
            f"sorted([{n}, '{word}', {m}])",
            f'print("{word}".index("{rng.choice(["z", word[1]])}"))',
            f"from math import {word}",
            f"{name} = []\n{name}.pop()",
            f"{name} = {{}}\n{name}.popitem()",
            f"import math\nmath.sqrt(-{n})",
            f"{name} = max([])",
            f"{name} = {n}\ndel {name}\nprint({name})",
            f"class A:\n    pass\n\nA().{name}",
            f"{name} = bytes([{n}, {rng.choice([m, 300])}])",
            f"{name} = range({n})[{n + m}]",
            f"{name} = 10.0 ** 400",
            f'{name} = int("{n}{m}", {rng.choice([2, 16])})',
            f"{name} = chr(-{n})",
        ]
    )


def raises(count: int, seed: int = 0) -> list[Example]:
    """Which exception do a few lines of Python raise, if any? Each question once; its group is the exception."""
    rng, found = random.Random(seed), {}
    while len(found) < count:
        code = _raising(rng)
        if code in found:
            continue
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(code, {})
        except Exception as error:
            found[code] = type(error).__name__
        else:
            found[code] = "none"
    return [Example(code, references=(name,), group=name) for code, name in found.items()]


# ---------------------------------------------------------------------- which module has it

MODULES = """abc argparse array ast asyncio base64 bisect calendar cmath codecs collections colorsys
concurrent.futures configparser contextlib copy csv ctypes dataclasses datetime decimal difflib dis email.utils enum
errno fnmatch fractions functools gc getpass glob gzip hashlib heapq hmac html http.client inspect io ipaddress
itertools json keyword linecache locale logging lzma mimetypes mmap multiprocessing operator os os.path pathlib pickle
pkgutil platform plistlib pprint queue random re sched secrets select shelve shlex shutil signal socket sqlite3 ssl
stat statistics string struct subprocess sys sysconfig tarfile tempfile textwrap threading time timeit token tokenize
traceback tracemalloc types typing unicodedata unittest.mock urllib.parse urllib.request uuid warnings weakref
xml.etree.ElementTree zipfile zlib zoneinfo""".split()


def modules(count: int, seed: int = 0) -> list[Example]:
    """Which module of Python's standard library has this name? Every module that has it is right.

    Which names there are depends on the version of Python; a recording keeps those it was made with.
    """
    loaded = {name: importlib.import_module(name) for name in MODULES}
    homes: dict[str, set[str]] = defaultdict(set)
    for name, module in loaded.items():
        for each in getattr(module, "__all__", None) or vars(module):
            if (
                each[0] != "_"
                and len(each) > 2
                and callable(getattr(module, each, None))
                and not hasattr(builtins, each)
            ):
                homes[each].add(name)
    homes.pop("main")  # many modules have one, and nobody knows it
    for each, where in homes.items():  # what a module only imports for itself is not its own
        made = {name for name in where if getattr(getattr(loaded[name], each), "__module__", name) == name}
        offered = {name for name in where if each in getattr(loaded[name], "__all__", ())}
        homes[each] = made | offered or where
    by_module: dict[str, list[str]] = defaultdict(list)
    for each in sorted(homes):
        by_module[min(homes[each])].append(each)
    rng = random.Random(seed)
    for names in by_module.values():
        rng.shuffle(names)
    found: list[Example] = []
    while len(found) < count and any(by_module.values()):
        for name in sorted(by_module):
            if by_module[name]:
                each = by_module[name].pop()
                kind = "class" if isinstance(getattr(loaded[name], each), type) else "function"
                found.append(Example(f"the {kind} `{each}`", references=tuple(sorted(homes[each])), group=kind))
    return found[:count]


# ---------------------------------------------------------------------- how they are asked and graded

FENCE = "```"


def _bare(text: str) -> str:
    """An answer without the marks of code around it."""
    text = text.strip()
    if FENCE in text:
        inner = text.split(FENCE)[1]
        text = inner.partition("\n")[2] if "\n" in inner else inner
    return text.strip().strip("`").strip()


def is_printed(example: Example, answer: str) -> bool:
    """Whether the answer is what Python prints, with quotes around a text or without."""
    said = _bare(answer)
    (wanted,) = example.references
    return said == wanted or said in (f"'{wanted}'", f'"{wanted}"')


def is_module(example: Example, answer: str) -> bool:
    """Whether the answer names a module that has it, with the package or as `import` does."""
    said = _bare(answer).removeprefix("import ").rstrip(".").strip().strip("`\"'").lower()
    return said in {reference.lower() for reference in example.references}


def is_raised(example: Example, answer: str) -> bool:
    """Whether the answer names the exception, or says that there is none."""
    return _bare(_bare(answer).rstrip(".")).lower() == example.references[0].lower()


FEW = (
    "Question: Which gas do plants take in from the air?\nA. Oxygen\nB. Carbon dioxide\nC. Helium\nD. Argon\nAnswer: B",
    "Question: A ball is rolled over sand and then over ice. Why does it roll farther on ice?\nA. Ice is colder.\n"
    "B. Ice is lighter.\nC. There is less friction on ice.\nD. There is more gravity on ice.\nAnswer: C",
    "Question: Which of these is a source of energy that renews itself?\nA. Coal\nB. Natural gas\nC. Oil\nD. Wind\n"
    "Answer: D",
)


@dataclass(frozen=True)
class QuestionSet:
    """Questions, how they are put, and what is right.

    Attributes:
        name: Of the set.
        read: The questions, from a folder of public data sets.
        prompt: How they are put.
        grader: What is right.
        max_tokens: Of an answer.
        signals: P(T) in each of its forms.
        ours: Whether the texts are ours to keep.
    """

    name: str
    read: Callable[[Path], Sequence[Example]]
    prompt: Prompt
    grader: Grader
    max_tokens: int
    signals: tuple[Signal, ...] = field(default=(TokenProbability(), TokenProbability(aggregate="min", name="p_t_min")))
    ours: bool = False

    def examples(self, data: Path, limit: int | None) -> list[Example]:
        """Drawn by a hash of their ids, so that fewer are a part of more."""
        every = list(self.read(data))
        return every if limit is None else sample(every, limit)


def _public(*place: str) -> Callable[[Path], Sequence[Example]]:
    def read(data: Path) -> Iterator[Example]:
        return read_examples(data.joinpath(*place))

    return lambda data: list(read(data))


def _lettered(data: Path) -> Sequence[Example]:
    every = read_examples(data / "arc_challenge" / "arc_challenge.json.gz", part="test")
    return [each for each in every if len(each.choices) == 4]


SETS: Mapping[str, QuestionSet] = {
    each.name: each
    for each in (
        QuestionSet(
            "gsm8k",
            _public("gsm8k", "train.jsonl.gz"),
            Prompt("steps", None, "{question}\n\nThink step by step, and end with 'Answer: <number>'."),
            Numeric(),
            350,
            (
                TokenProbability(),
                TokenProbability(aggregate="min", name="p_t_min"),
                TokenProbability(after="Answer:", name="p_t_answer"),
            ),
        ),
        QuestionSet(
            "printed",
            lambda _: printed(1500),
            Prompt(
                "printed",
                None,
                "What does this Python code print?\n\n```python\n{question}\n```\n\n"
                "Answer with what it prints, and nothing else.",
            ),
            Function(is_printed),
            40,
            ours=True,
        ),
        QuestionSet(
            "raises",
            lambda _: raises(1500),
            Prompt(
                "raises",
                None,
                "Which exception does this Python code raise?\n\n```python\n{question}\n```\n\n"
                "Answer with the name of the exception, or none, and nothing else.",
            ),
            Function(is_raised),
            16,
            ours=True,
        ),
        QuestionSet(
            "modules",
            lambda _: modules(1500),
            Prompt(
                "modules",
                None,
                "Which module of Python's standard library has {question}? "
                "Answer with the module's name, and nothing else.",
            ),
            Function(is_module),
            12,
            ours=True,
        ),
        QuestionSet(
            "popqa",
            _public("popqa", "popqa_a.jsonl.gz"),
            Prompt("briefly", None, "{question} Answer with the name, and nothing else."),
            ContainsAny(),
            16,
        ),
        QuestionSet(
            "arc",
            _lettered,
            Prompt(
                "few-shot",
                None,
                "\n\n".join(FEW) + "\n\nQuestion: {question}\n{choices}\nAnswer with the letter of the right choice.",
            ),
            ChoiceLetter(),
            8,
            (TokenProbability("ABCD"),),
        ),
    )
}
