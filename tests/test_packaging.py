"""What pip installs, and the one place for the version and the repository's address."""

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ADDRESS = PROJECT["project"].get("urls", {}).get("Repository")
OUTSIDE = {"benchmarks", "notebooks", "results", "tests"}  # not installed
PLACEHOLDER = re.compile(
    r"(?i)\b(owner|user|your[-_ ]?(user)?name)/(repo|repository|project)\b"
    r"|github\.com/(your|owner|user|name|me|<|\{)"
)


def tracked_files():
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [
        ROOT / name for name in filter(None, done.stdout.split("\0")) if (ROOT / name).is_file()
    ]


def texts():
    for path in tracked_files():
        try:
            yield path.relative_to(ROOT), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture


def test_every_module_of_the_root_is_installed():
    assert set(PROJECT["tool"]["setuptools"]["py-modules"]) == {p.stem for p in ROOT.glob("*.py")}


def test_every_folder_of_modules_is_a_package():
    """Pip leaves a folder without __init__.py out."""
    modules = [path for path in tracked_files() if path.suffix == ".py" and path.parent != ROOT]
    folders = {p.parent for p in modules if p.relative_to(ROOT).parts[0] not in OUTSIDE}
    assert len(folders) > 10
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def test_the_changelog_begins_with_the_version():
    headings = re.findall(r"^## (.*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0].split(" - ")[0] == PROJECT["project"]["version"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", heading) for heading in headings)


def test_no_address_is_a_placeholder():
    found = [
        f"{path}: {match[0]}" for path, text in texts() for match in PLACEHOLDER.finditer(text)
    ]
    assert not found


def test_citation_and_badges_name_the_address_of_the_project_or_are_absent():
    (citation,) = (text for path, text in texts() if path.name == "CITATION.cff")
    stated = re.findall(r"^repository-code: *(\S+)", citation, re.MULTILINE)
    badge = re.compile(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)")
    badges = {match[1] for path, text in texts() for match in badge.finditer(text)}
    if ADDRESS:
        assert stated == [ADDRESS]
        assert badges <= {ADDRESS.removeprefix("https://github.com/")}
    else:
        assert not stated
        assert not badges
