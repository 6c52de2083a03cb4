"""What the documents name is there: links and their headings, files, commands' modules, and names of the code."""

import ast
import importlib.util
import itertools
import re
from pathlib import Path

import pytest
from conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "sd_vae_kit").rglob("*.md")])
# Documents about the code: every name in `these` must be one of the code.
ABOUT_CODE = ("architecture.md", "CONTRIBUTING.md")
PACKAGE = ROOT / "sd_vae_kit"
FOLDERS = sorted(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__")
OWN_FILE = re.compile(r"^[\w-]+\.(py|lock|toml|md|css)$")
NAME = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(\(\))?$")
ID = {page: page.relative_to(ROOT).as_posix() for page in PAGES}
pages = pytest.mark.parametrize("page", PAGES, ids=ID.get)


def text_of(page: Path) -> str:
    return page.read_text("utf-8")


def prose(text: str) -> str:
    """The page without blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def code_words(text: str) -> list[str]:
    """What stands in `this` form."""
    return re.findall(r"`([^`\n]+)`", prose(text))


def anchors(text: str) -> set[str]:
    """The anchors that a page's headings make, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", prose(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """Links to files that are not there, and to headings that a page does not have."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.is_file() or (anchor and anchor not in anchors(text if file == page else text_of(file))):
            found.append(target)
    return found


def missing_files(page: Path, text: str) -> list[str]:
    """Paths of this repository, and file names as ours are called, that are not there."""
    files = {path.name for path in itertools.chain(ROOT.glob("*"), *((ROOT / name).rglob("*") for name in FOLDERS))}
    found = []
    for words in code_words(text):
        for word in words.split():
            first = word.split("/")[0]
            if "/" in word and first in FOLDERS:
                found += [] if exists(ROOT, word) else [word]
            elif "/" in word and first in ROOMS:
                found += [] if exists(PACKAGE, word) else [word]
            elif OWN_FILE.match(word):
                found += [] if word in files else [word]
    return found


def exists(folder: Path, pattern: str) -> bool:
    return any(folder.glob(pattern.split("::")[0].rstrip("/")))


def missing_modules(text: str) -> list[str]:
    """`python -m` modules of this repository, in lines of code too, that are not there."""
    names = re.findall(r"python -m ((?:sd_vae_kit|tools|bench)[\w.]*)", text)
    return [name for name in names if importlib.util.find_spec(name) is None]


def names_of_the_code() -> set[str]:
    """Every name that the sources define or use, and the modules' own; strings of tests do not count."""
    found = {"sd_vae_kit"}
    for path in itertools.chain(ROOT.glob("*.py"), *((ROOT / name).rglob("*.py") for name in FOLDERS)):
        found.update((path.stem, *path.relative_to(ROOT).parts[:-1]))
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            for key in ("name", "id", "attr", "arg", "module"):
                value = getattr(node, key, None)
                if isinstance(value, str):
                    found.update(value.split("."))
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and path.parts[-2] != "tests":
                found.update(re.findall(r"\w+", node.value))
    return found


@pages
def test_links_lead_somewhere(page):
    assert broken_links(page, text_of(page)) == []


@pages
def test_files_that_are_named_are_there(page):
    assert missing_files(page, text_of(page)) == []


@pages
def test_modules_that_are_started_are_there(page):
    assert missing_modules(text_of(page)) == []


@pytest.fixture(scope="module")
def names() -> set[str]:
    return names_of_the_code()


@pytest.mark.parametrize("page", [page for page in PAGES if page.name in ABOUT_CODE], ids=ID.get)
def test_names_in_documents_about_the_code_are_names_of_the_code(page, names):
    words = [word for word in code_words(text_of(page)) if NAME.match(word) and not OWN_FILE.match(word)]
    assert len(words) > 10
    assert [word for word in words if not set(word.removesuffix("()").split(".")) <= names] == []


def test_no_document_points_outside_the_repository():
    outside = re.compile(r"\]\(\.\./\.\./|\]\(/|\.\./shared|/home/|/tmp/|/work/")
    assert [ID[page] for page in PAGES if outside.search(text_of(page))] == []


def test_every_document_can_be_reached_from_the_readme():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        targets = re.findall(r"\]\(([^)\s#]+)", text_of(page))
        waiting += [(page.parent / target).resolve() for target in targets if "://" not in target]
    assert [ID[page] for page in PAGES if page not in reached] == []


@pytest.mark.parametrize(
    ("text", "find", "found"),
    [
        (
            "[a](docs/tiling.md) [b](gone.md) [c](docs/tiling.md#what-it-costs) [d](docs/tiling.md#gone)",
            broken_links,
            ["gone.md", "docs/tiling.md#gone"],
        ),
        (
            "`tests/conftest.py` `tests/gone.py` `core/gone.py` `gone.py` `models/VAE`",
            missing_files,
            ["tests/gone.py", "core/gone.py", "gone.py"],
        ),
    ],
)
def test_what_is_missing_is_found(text, find, found):
    assert find(ROOT / "README.md", text) == found


def test_a_missing_module_is_found():
    assert missing_modules("python -m tools.rooms, python -m tools.gone") == ["tools.gone"]


def test_a_name_that_is_not_of_the_code_is_found(names):
    assert "decoder_graph" in names
    assert "decoder_grapf" not in names
