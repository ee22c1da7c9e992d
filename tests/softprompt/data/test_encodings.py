"""Encodings of text files: named, recognised, and advised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.errors import InvalidInput
from softprompt import Data
from softprompt.data.checking import check
from softprompt.data.prepare import prepare
from softprompt.data.problems import UnusableData
from tests.softprompt.data.example_files import examples_of, written


def test_an_encoding_can_be_named(tmp_path: Path) -> None:
    path = written(tmp_path / "latin.csv", "text,label\nschön,a\n".encode("cp1252"))
    assert examples_of(prepare(Data(path, encoding="cp1252"))) == [{"input": "schön", "label": "a"}]
    for encoding in ("klingon", "rot13", "base64", "utf\0"):
        with pytest.raises(InvalidInput, match="is not a known encoding"):
            prepare(Data(path, encoding=encoding))
    with pytest.raises(InvalidInput, match="is not in UTF-16"):
        prepare(Data(path, encoding="utf-16"))


@pytest.mark.parametrize(
    ("content", "problems", "num_examples"),
    [
        (b'{"input": "a", "label": "x"}\n{"input": "b\xff", "label": "x"}\n{"input": 1}\n', [2, 3], 1),
        (b'input,label\na,x\n"two\nl\xe9nes",y\nb,x\n', [4], 2),
        (b"input,label,\xe9\na,x,1\nb\xe9,y,1\n", [1], 0),
        (b'[{"input": "a", "label": "x"},\n{"input": "\xe9", "label": "x"}]', [2], 0),
    ],
    ids=["lines", "a cell of two lines", "header", "document"],
)
def test_a_row_of_an_unknown_encoding_is_counted_once(
    tmp_path: Path, content: bytes, problems: list[int], num_examples: int
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    found = check(Data(str(path)))
    assert [problem.place for problem in found.problems] == [f"line {line}" for line in problems]
    assert (found.num_problems, found.num_examples) == (len(problems), num_examples)
    assert found.fix == {"--encoding": "cp1252"}


UNMARKED = {
    "Chinese": ("这个产品非常好用，我很喜欢", "好"),
    "Japanese": ("これは、とても\u3000良い", "良い"),
    "Russian": ("Это очень хороший товар", "да"),
    "Gurmukhi": ("ਇਹ ਬਹੁਤ ਵਧੀਆ ਹੈ", "ਹਾਂ"),
    "emoji": ("\U0001f44d\U0001f3fd" * 9, "\U0001f44d"),
}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("script", UNMARKED)
def test_utf_16_without_a_mark_is_read_in_any_script(script: str, encoding: str, tmp_path: Path) -> None:
    text, label = UNMARKED[script]
    wanted = [{"input": text * count, "label": label} for count in (1, 300, 2)]
    lines = [json.dumps(example, ensure_ascii=False) for example in wanted]
    table = "".join(f'"{example["input"]}",{label}\r\n' for example in wanted)
    files = {"a.csv": "input,label\r\n" + table, "a.jsonl": "\n".join(lines), "a.json": f"[{','.join(lines)}]"}
    for name, content in files.items():
        prepared = prepare(written(tmp_path / name, content.encode(encoding)))
        assert examples_of(prepared) == wanted
        assert encoding.upper() in prepared.format


@pytest.mark.parametrize(
    ("text", "encoding", "named"),
    [
        ("schön “gut”", "cp1252", "cp1252"),
        ("привет", "cp1251", ""),
        ("你好，世界", "gb18030", ""),
        ("日本", "shift_jis", ""),
    ],
)
def test_an_encoding_is_advised_only_where_it_is_likely(text: str, encoding: str, named: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", f"input,label\n{text},a\n".encode(encoding))
    with pytest.raises(UnusableData, match="line 2: is not UTF-8: byte") as refused:
        prepare(path)
    assert refused.value.fix == ({"--encoding": named} if named else {})
    assert (named or "such as cp1251 (Cyrillic), gb18030 (Chinese) or shift_jis") in refused.value.advice
    assert check(Data(str(path))).fix == refused.value.fix
    assert examples_of(prepare(Data(path, encoding=encoding)))[0]["input"] == text


def test_a_byte_that_the_named_encoding_does_not_have_is_no_matter_of_utf_8(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", b"input,label\na\x81b,x\n")
    with pytest.raises(UnusableData, match="line 2: is not CP1252: byte 0x81 at character 2") as refused:
        prepare(Data(path, encoding="cp1252"))
    assert not refused.value.fix, "it is the encoding that was named"
