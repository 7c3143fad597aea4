import pytest
import yaml

from lowrank.errors import UserError
from lowrank.settings.document import read_document, reconciled


@pytest.fixture
def read(tmp_path):
    def read_text(text):
        path = tmp_path / "params.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_document(path)

    return read_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-05", 1e-5),
        ("1e-5", 1e-5),
        ("-2E+3", -2000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("6.0e-4", 6e-4),
        ("+3", 3),
        ("0", 0),
        ("0.0", 0.0),
        ("00.5", 0.5),
        ("0x1F", 31),
        ("0o17", 15),
        ("-.inf", -float("inf")),
        ("'1e-05'", "1e-05"),
        ("'0100'", "0100"),
        ("2024-01-01", "2024-01-01"),
        ("1.2.3", "1.2.3"),
        ("-", "-"),
        ("true", True),
        ("no", False),
        ("~", None),
        ("vgg16", "vgg16"),
        ("[64, 1e-3]", [64, 1e-3]),
    ],
)
def test_values_follow_yaml_1_2(read, text, value):
    if text == "-":
        text = "'-'"
    entry = read(f"a: {text}\n").entries["a"]
    assert entry == value
    assert type(entry) is type(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:\n  b: 0100\n", "line 2, column 6: 0100 is ambiguous: YAML readers"),
        ("a: 1_000\n", "line 1, column 4: 1_000 is ambiguous"),
        ("a: 1:30\n", "line 1, column 4: 1:30 is ambiguous"),
        ("a: 0b11\n", "line 1, column 4: 0b11 is ambiguous"),
        (
            "a:\n  steps: 1\n  seed: 0\n  steps: 2\n",
            "line 4, column 3: `steps` was already given in line 2; remove one of them",
        ),
        (
            "outputs: {0: 1}\n",
            "line 1, column 11: YAML reads the key `0` as the number 0; put it in quotes: '0'",
        ),
        (
            "a:\n  no: 1\n",
            "line 2, column 3: YAML reads the key `no` as false; put it in quotes: 'no'",
        ),
        ("~: 1\n", "line 1, column 1: YAML reads the key `~` as null; put it in quotes: '~'"),
        ("? [a]\n: 1\n", "line 1, column 3: a key is a list or a mapping; expected a name"),
        ("a: [1\nb: 2\n", "line 2, column 2: not YAML: while parsing a flow sequence"),
        ("a:\n\tb: 1\n", "Indent with spaces, not tabs."),
        ("a: b: c\n", "line 1, column 5: not YAML: mapping values are not allowed here. Put text"),
        ("a: *x\n", "found undefined alias 'x'"),
        ("a: !!python/object:os.system {}\n", "could not determine a constructor"),
        ("a: &x {b: *x}\n", "contains itself"),
        (b"a: \xff\n", "not YAML:"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1: not YAML: expected a single document"),
        ("- 1\n", "expected a mapping of sections, found a list."),
        ("text\n", "expected a mapping of sections, found text."),
        ("", "expected a mapping of sections, found nothing."),
    ],
)
def test_broken_and_ambiguous_files_are_rejected(read, tmp_path, text, expected):
    with pytest.raises(UserError) as caught:
        read(text)
    assert str(caught.value).startswith(f"{tmp_path / 'params.yaml'}: ")
    assert expected in str(caught.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_document(tmp_path / "params.yaml")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_document(tmp_path)


def test_entries_have_lines(read):
    document = read("a:\n  b:\n    - 1\n    - {c: 2}\nd: &x\n  e: 1\nf:\n  <<: *x\n  g: 2\n")
    assert document.line_of(("a", "b", 1, "c")) == 4
    assert document.line_of(("a", "b", 0)) == 3
    assert document.line_of(("a", "b", "missing")) == 2
    assert document.line_of(("missing",)) is None
    assert document.entries["f"] == {"e": 1, "g": 2}
    assert document.line_of(("f", "g")) == 9
    assert document.holds(("f", "g"))
    assert not document.holds(("f", "h"))


def test_command_line_values_have_types_but_no_lines(tmp_path):
    path, later_path = tmp_path / "params.yaml", tmp_path / "other.yaml"
    path.write_text("a: {eps: 1e-05, name: '1e-05', steps: 3, keep: 1}\nb: 2\n")
    later_path.write_text("a: {name: '7', rate: 1e-3}\n")
    # As Snakemake merges both files and `--config 'a={...}' 'c={...}'`.
    config = yaml.safe_load(path.read_text())
    assert config["a"]["eps"] == "1e-05"
    config["a"] |= yaml.safe_load(later_path.read_text())["a"]
    config["a"] |= {"steps": "2000", "epochs": "null", "flip": "false", "more": ["1e-3", "x"]}
    config["c"] = {"d": 5}
    document = reconciled(config, [path, later_path])
    assert document.entries == {
        "a": {
            "eps": 1e-5,
            "name": "7",
            "steps": 2000,
            "keep": 1,
            "rate": 1e-3,
            "epochs": None,
            "flip": False,
            "more": [1e-3, "x"],
        },
        "b": 2,
        "c": {"d": 5},
    }
    assert document.line_of(("b",)) == 2
    assert ("a", "eps") in document.lines
    assert ("a", "steps") not in document.lines
    assert ("a", "name") not in document.lines
