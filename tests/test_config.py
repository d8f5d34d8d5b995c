"""Settings files: which one is found, which values it gives, and everything that is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from detcheck.config import Config, load_config, read_config
from detcheck.errors import UsageError


class Limits(msgspec.Struct, frozen=True):
    max_distinct: int | None = None
    baseline: Path | None = None
    level: Literal["bits", "tokens"] | None = None
    names: str | tuple[str, ...] | None = None
    ratio: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    strict: bool = False

    def __post_init__(self) -> None:
        if self.max_distinct == 0:
            raise UsageError("`max_distinct` must be at least 1, not 0.")


class Here(msgspec.Struct, frozen=True):
    engine: Literal["static"] = "static"
    device: str = "auto"


class There(msgspec.Struct, frozen=True):
    engine: Literal["openai"] = "openai"
    endpoints: tuple[str, ...] = ()


SECTIONS = {"gate": Limits, "target": (Here, There)}


@pytest.fixture
def repository(tmp_path) -> Path:
    """A folder with `.git`, and two folders below it."""
    (tmp_path / "repo/.git").mkdir(parents=True)
    (tmp_path / "repo/a/b").mkdir(parents=True)
    return tmp_path / "repo"


@pytest.fixture
def read(tmp_path) -> Callable[..., Config]:
    """Returns a function: the text of a detcheck.toml -> what it gives."""

    def read(text: str, name: str = "detcheck.toml") -> Config:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return read_config(tmp_path / name, SECTIONS)

    return read


def test_a_file_of_the_root_is_found_from_a_folder_below(repository):
    (repository / "detcheck.toml").write_text("[gate]\nmax-distinct = 3\n", encoding="utf-8")
    config = load_config(repository / "a/b", SECTIONS)
    assert config.path == repository / "detcheck.toml"
    assert config.section("gate") == {"max_distinct": 3}


def test_the_nearest_file_is_taken(repository):
    (repository / "detcheck.toml").write_text("[gate]\nmax-distinct = 3\n", encoding="utf-8")
    (repository / "a/detcheck.toml").write_text("[gate]\nmax-distinct = 4\n", encoding="utf-8")
    assert load_config(repository / "a/b", SECTIONS).section("gate") == {"max_distinct": 4}


def test_a_file_without_the_section_that_is_looked_for_does_not_end_the_search(repository):
    (repository / "detcheck.toml").write_text("[gate]\nmax-distinct = 3\n", encoding="utf-8")
    below = repository / "a/detcheck.toml"
    below.write_text("[run]\n", encoding="utf-8")
    sections = {**SECTIONS, "run": SECTIONS["gate"]}
    found = load_config(repository / "a/b", sections, ("gate",))
    assert found.path == repository / "detcheck.toml"
    assert load_config(repository / "a/b", sections).path == below
    below.write_text("[run]\nmax-distnct = 3\n", encoding="utf-8")
    with pytest.raises(UsageError, match="unknown key 'max-distnct'"):
        load_config(repository / "a/b", sections, ("gate",))


def test_tables_of_other_tools_are_theirs(read):
    text = "[tool.detecting]\nx = 1\n[tool.check]\n[tool.ruff]\n[tool.detcheck.gate]\n"
    assert read(text, "pyproject.toml").section("gate") == {}


def test_a_pyproject_without_our_table_does_not_end_the_search(repository):
    (repository / "detcheck.toml").write_text("[gate]\nmax-distinct = 3\n", encoding="utf-8")
    (repository / "a/pyproject.toml").write_text("[project]\nname = 'x'\n", encoding="utf-8")
    assert load_config(repository / "a/b", SECTIONS).path == repository / "detcheck.toml"


def test_the_search_ends_at_the_root_of_the_repository(repository):
    (repository.parent / "detcheck.toml").write_text("[gate]\nmax-distinct = 3\n", encoding="utf-8")
    assert load_config(repository / "a", SECTIONS) == Config(None, {})


def test_a_worktree_has_a_file_of_that_name_and_is_a_root_too(repository):
    (repository / "detcheck.toml").write_text("[gate]\nmax-distinct = 3\n", encoding="utf-8")
    (repository / "a/.git").write_text("gitdir: elsewhere\n", encoding="utf-8")
    assert load_config(repository / "a/b", SECTIONS).path is None


def test_without_a_repository_the_search_goes_on_upwards(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "detcheck.toml").write_text("[gate]\nmax-distinct = 3\n", encoding="utf-8")
    assert load_config(tmp_path / "a", SECTIONS).path == tmp_path / "detcheck.toml"


def test_the_table_of_a_pyproject(read):
    config = read("[tool.detcheck.gate]\nmax-distinct = 3\n[tool.other]\nx = 1\n", "pyproject.toml")
    assert config.section("gate") == {"max_distinct": 3}


def test_two_files_in_one_folder_are_refused(repository):
    (repository / "detcheck.toml").write_text("[gate]\nmax-distinct = 3\n", encoding="utf-8")
    (repository / "pyproject.toml").write_text("[tool.detcheck.gate]\n", encoding="utf-8")
    with pytest.raises(UsageError, match="both hold settings"):
        load_config(repository, SECTIONS)


def test_only_what_is_given_is_a_value(read):
    assert read("[gate]\nstrict = true\n").values == {"gate": {"strict": True}}
    assert read("").values == {}


def test_keys_may_be_written_with_hyphens_or_underscores(read):
    assert read("[gate]\nmax_distinct = 3\n").section("gate") == {"max_distinct": 3}
    with pytest.raises(UsageError, match="given twice"):
        read("[gate]\nmax_distinct = 3\nmax-distinct = 4\n")


def test_values_have_the_types_of_their_fields(read):
    values = read("[gate]\nratio = 2\nnames = ['a', 'b']\nlevel = 'bits'\n").section("gate")
    assert values == {"ratio": 2.0, "names": ("a", "b"), "level": "bits"}
    assert isinstance(values["ratio"], float)


def test_relative_paths_are_relative_to_the_file(repository):
    (repository / "detcheck.toml").write_text("[gate]\nbaseline = 'good'\n", encoding="utf-8")
    config = load_config(repository / "a/b", SECTIONS)
    assert config.section("gate") == {"baseline": repository / "good"}


def test_absolute_paths_stay(read):
    assert read("[gate]\nbaseline = '/x/y'\n").section("gate")["baseline"] == Path("/x/y")


def test_a_section_of_several_kinds_has_the_keys_of_all(read):
    values = read("[target]\nengine = 'openai'\nendpoints = ['http://x/v1']\n").section("target")
    assert values == {"engine": "openai", "endpoints": ("http://x/v1",)}
    assert read("[target]\nengine = 'static'\n").section("target") == {"engine": "static"}
    with pytest.raises(UsageError, match="unknown value 'zzz': known are static, openai"):
        read("[target]\nengine = 'zzz'\n")


def test_a_struct_is_built_from_a_section(read):
    assert read("[gate]\nmax-distinct = 3\n").build("gate", Limits) == Limits(max_distinct=3)
    assert Config(None, {}).build("gate", Limits) == Limits()
    with pytest.raises(UsageError, match=r"detcheck.toml: `max_distinct` must be at least 1"):
        read("[gate]\nmax-distinct = 0\n").build("gate", Limits)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[gates]\nmax-distinct = 3\n",
            "unknown section [gates] (did you mean 'gate'?): known are gate, target.",
        ),
        ("[other]\n", "unknown section [other]: known are gate, target."),
        ("[gate]\nmax-distict = 3\n", "unknown key 'max-distict' in [gate] (did you mean 'max-di"),
        ("[gate]\nzzz = 3\n", "unknown key 'zzz' in [gate]: known are max-distinct, baseline,"),
        ("max-distinct = 3\n", "'max-distinct' belongs in [gate], not in the file."),
        ("max-distin = 3\n", "unknown key 'max-distin' in the file (did you mean 'max-distinct'?)"),
        ("gate = 3\n", "[gate] must be a table."),
        ("[[gate]]\nmax-distinct = 3\n", "[gate] must be a table."),
        ("[gate]\nmax-distinct = '3'\n", "gate.max-distinct: expected a whole number, got text."),
        ("[gate]\nmax-distinct = true\n", "expected a whole number, got true or false."),
        ("[gate]\nmax-distinct = 1.5\n", "expected a whole number, got a number."),
        ("[gate]\nnames = 1\n", "gate.names: expected text or a list, got a whole number."),
        ("[gate]\nnames = ['a', 1]\n", "gate.names[1]: expected text, got a whole number."),
        ("[gate]\nbaseline = 1\n", "gate.baseline: expected text, got a whole number."),
        ("[gate]\nlevel = 'bit'\n", "gate.level: unknown value 'bit' (did you mean 'bits'?)"),
        ("[gate]\nratio = -1\n", "gate.ratio: expected a number >= 0"),
        ("[gate\n", "is not valid TOML"),
    ],
)
def test_what_a_file_must_not_hold(read, text, words):
    with pytest.raises(UsageError) as caught:
        read(text)
    message = str(caught.value)
    assert "detcheck.toml" in message
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tool.detcheck.gates]\n", "unknown section [tool.detcheck.gates] (did you mean 'gate'?)"),
        ("[tool.detcheck]\nmax_distinct = 3\n", "'max_distinct' belongs in [tool.detcheck.gate]"),
        ("[tool.detcheck.gate]\nlevel = 1\n", "tool.detcheck.gate.level: "),
        ("[tool.detcheck]\ngate = [1]\n", "[tool.detcheck.gate] must be a table."),
        ("[tool]\ndetcheck = 1\n", "[tool.detcheck] must be a table."),
        ("tool = 3\n", "[tool] must be a table."),
        ("[tool.detchek.gate]\n", "unknown section [tool.detchek]: did you mean [tool.detcheck]?"),
        ("[tool.Det-Check.gate]\n", "unknown section [tool.Det-Check]: did you mean"),
        ("[tools.detcheck.gate]\n", "unknown section [tools.detcheck]: did you mean"),
        ("[detcheck.gate]\n", "unknown section [detcheck]: did you mean [tool.detcheck]?"),
    ],
)
def test_what_a_pyproject_must_not_hold(read, text, words):
    with pytest.raises(UsageError) as caught:
        read(text, "pyproject.toml")
    assert words in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "pyproject.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not valid TOML"):
        load_config(tmp_path, SECTIONS)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "detcheck.toml").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        load_config(tmp_path, SECTIONS)


def test_a_named_file_that_is_missing_is_refused(tmp_path):
    with pytest.raises(UsageError, match="There is no file"):
        read_config(tmp_path / "nowhere.toml", SECTIONS)


def test_reading_settings_imports_nothing_heavy():
    code = (
        "import sys, detcheck.config\n"
        "print([name for name in ('torch', 'pandas', 'typer', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"
