"""Links, paths, make targets, settings and modules that pages and docstrings of packages name exist."""

from __future__ import annotations

import ast
import json
import re
import tokenize
from pathlib import Path

import pytest

from tests.code_blocks import PAGES, ROOT
from tests.k8s.checks.settings import SERVICES
from tests.slow import FILES, FOLDERS

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_PATH = re.compile(
    r"`((?:shared|trainer_service|inference_service|softprompt|tests|benchmarks|k8s|docs|protos|examples)/[\w./-]*)`"
)
_TEST = re.compile(r"`((?:[\w/]+/)?test_\w+\.py)`")
_OLD_WORDS = re.compile(
    r"\b(insists?|likewise|nobody|somebody|whoever|errands?|told|so many|lets? go|grows? old|stands? in for|outlook)\b",
    re.IGNORECASE,
)
"""Words of an English that this project has left behind (CONTRIBUTING.md shows what to write in their place)."""
PRODUCT = ("shared", "trainer_service", "inference_service", "softprompt")
PACKAGES = [path for top in PRODUCT for path in (ROOT / top).rglob("__init__.py")]
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def anchors_of(text: str) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def exists(path: str) -> bool:
    """Whether a file, a folder, or a module of this name exists; pages may leave out `.py`."""
    return any((ROOT / f"{path.rstrip('/')}{ending}").exists() for ending in ("", ".py"))


def test_the_pages_are_found() -> None:
    assert {
        "README.md",
        "CONTRIBUTING.md",
        "docs/engine.md",
        "k8s/README.md",
        "examples/support-tone/README.md",
    } <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    broken = []
    for link in _LINK.findall(_FENCE.sub("", text_of(page))):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors_of(target.read_text())):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page: str) -> None:
    assert [path for path in _PATH.findall(_FENCE.sub("", text_of(page))) if not exists(path)] == []


@pytest.mark.parametrize("page", PAGES)
def test_tests_exist(page: str) -> None:
    tests = [path.as_posix() for path in (ROOT / "tests").rglob("test_*.py")]
    assert [name for name in _TEST.findall(text_of(page)) if not any(test.endswith(f"/{name}") for test in tests)] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CONTRIBUTING.md"])
def test_pages_are_in_plain_words(page: str) -> None:
    assert _OLD_WORDS.findall(_FENCE.sub("", text_of(page))) == []


def test_docstrings_and_comments_are_in_plain_words() -> None:
    found = []
    for path in (path for top in (*PRODUCT, "tests", "benchmarks") for path in (ROOT / top).rglob("*.py")):
        if not _OLD_WORDS.search(path.read_text()):
            continue
        with path.open("rb") as file:
            for token in tokenize.tokenize(file.readline):
                prose = token.type == tokenize.COMMENT or (token.type == tokenize.STRING and token.string[:3] == '"""')
                if prose and (words := _OLD_WORDS.findall(token.string)):
                    found.append(f"{path.relative_to(ROOT)}:{token.start[0]}: {', '.join(words)}")
    assert found == []


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page: str) -> None:
    named = set(re.findall(r"\bmake ([a-z][a-z-]+)", " ".join(re.findall(r"`[^`]*`", text_of(page)))))
    assert named - set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE)) == set()


@pytest.mark.parametrize("page", PAGES)
def test_settings_exist(page: str) -> None:
    named = set(re.findall(r"SOFTPROMPT_(?:TRAINER|INFERENCE)_[A-Z][A-Z_]*[A-Z]", text_of(page)))
    known = {f"{prefix}{field}".upper() for cls, prefix in SERVICES.values() for field in cls.model_fields}
    assert named - known == set()


def test_the_lists_of_slow_tests_name_what_exists() -> None:
    assert [name for name in (*FOLDERS, *FILES) if not (ROOT / "tests" / name).exists()] == []


@pytest.mark.parametrize("package", sorted(str(path.parent.relative_to(ROOT)) for path in PACKAGES))
def test_the_docstring_of_a_package_names_modules_that_exist(package: str) -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text())) or ""
    assert docstring, package
    places = [Path(package), Path(package).parent, Path(package.split("/")[0]), Path(), Path("protos")]
    names = [name.replace(".", "/") for name in re.findall(r"`([a-z_]\w*(?:\.\w+)*)`", docstring) if name.islower()]
    assert not [name for name in names if not any(exists(f"{place}/{name}") for place in places)]


def test_the_table_of_examples_has_the_measured_figures() -> None:
    """Of the README, from the results of `softprompt example`."""
    measured = json.loads(text_of("benchmarks/results/examples.json")).values()
    rows = [
        line
        for line in text_of("README.md").splitlines()
        if " held out) | " in line or re.search(r" \+ \d+\) \| ", line)
    ]
    found = {tuple(re.findall(r"\d+(?:\.\d+)?", re.sub(r"0 to 100 ", "", row))) for row in rows}
    assert found == {
        (
            str(one["num_train"]),
            str(one["num_held_out"]),
            *(
                f"{value * (1 if one['metric'] == 'chrf' else 100):.1f}"
                for value in (
                    *(rival["value"] for rival in one["rivals"]),
                    *map(one["tuned"].get, ("value", "low", "high")),
                )
            ),
        )
        for one in measured
    }
