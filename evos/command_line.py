"""The command line and config files of every program: ConfigArgParse over the option dataclasses.

``--train.steps 1000``, ``--train.steps=1000`` and ``train.steps=1000`` are the same; a switch alone is true. Values are
texts until the dataclass gives them a type: a ``#`` within a value begins no comment, and no text is converted early.
Config files (``--config FILE``, repeatable; later ones override earlier ones, and the command line overrides all) are
YAML, nested or dotted, if their name ends in .yaml or .yml, else lines ``name = value``.

An exchangeable part (selector, field, ...) is an option of that name, and its options have the part's name as a prefix:
``--selector evos --selector.keep_ratio 0.25``. Where a source overrides the choice of a part, options given for the
part that was replaced are dropped.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from evos.config import Option, build_config, check_choice, options
from evos.errors import InputError
from evos.renamed_options import unknown_option

T = TypeVar("T")
Texts = dict[str, str]


@dataclass(frozen=True)
class Program:
    """The specification of a program's command line.

    ``groups``: option dataclasses by prefix, ``""`` for those without one. ``parts``: for each exchangeable part, its
    configs by name. ``choose``: from the texts given, the default name of each part. ``lists``: options that are lists
    of mappings, with their help.
    """

    name: str
    description: str
    groups: Mapping[str, type]
    parts: Mapping[str, Mapping[str, type]] = field(default_factory=dict)
    choose: Callable[[Texts], Mapping[str, str]] = lambda texts: {}
    lists: Mapping[str, str] = field(default_factory=dict)

    def own_options(self) -> dict[str, Option]:
        """The options by dotted name, without those of parts."""
        found = {dotted(prefix, o.name): o for prefix, config in self.groups.items() for o in options(config)}
        for name, table in self.parts.items():
            found.setdefault(name, Option(name, str, False, None, f"Which {name} is used.", tuple(table)))
        found |= {name: Option(name, str, True, None, text) for name, text in self.lists.items()}
        return found

    def part_options(self, names: Mapping[str, str]) -> dict[str, Option]:
        """The options of the parts of these names, by dotted name."""
        found = {}
        for part, name in names.items():
            check_choice(f"--{part}", name, self.parts[part])
            found |= {dotted(part, o.name): o for o in options(self.parts[part][name])}
        return found


@dataclass(frozen=True)
class Given:
    """Options as given: ``texts`` by dotted name, and the chosen name of each of the ``parts``.

    ``places``: file and line of each option given in a config file.
    """

    texts: Texts
    parts: dict[str, str]
    places: Texts

    @contextmanager
    def naming_files(self) -> Iterator[None]:
        """A context in which an InputError about an option from a config file also names file and line."""
        try:
            yield
        except InputError as error:
            place = self.places.get(error.argument.removeprefix("--"))
            if place is None:
                raise
            raise InputError(f"{error.argument} ({place})", error.got, error.allowed) from None


def dotted(prefix: str, name: str) -> str:
    """``prefix.name``, or the name alone."""
    return f"{prefix}.{name}" if prefix else name


def read_command_line(program: Program, argv: Sequence[str] | None = None) -> Given:
    """Read the command line (None: that of this process) and its config files; ``--help`` prints and exits.

    Raises:
        InputError: an unknown option (suggests the closest one, or the new name of an old one), a stray word, or a file
            that can't be read.
    """
    own = program.own_options()
    files, texts, wants_help = split_words(sys.argv[1:] if argv is None else list(argv), own)
    merged: Texts = {}
    places: Texts = {}
    for layer in [*map(read_config, files), {name: (text, "") for name, text in texts.items()}]:
        layer = {part_name(name, program): entry for name, entry in layer.items()}
        refuse_groups(program, own, layer)
        for part in program.parts:
            if part in layer and layer[part][0] != current(program, merged, part):
                merged = {name: text for name, text in merged.items() if not name.startswith(f"{part}.")}
        merged |= {name: text for name, (text, _) in layer.items()}
        places = {name: place for name, place in places.items() if name in merged}
        places |= {name: place for name, (_, place) in layer.items()}
    places = {name: place for name, place in places.items() if place}
    found = Given(merged, {}, places)
    with found.naming_files():
        found.parts.update({part: current(program, merged, part) for part in program.parts})
        of_parts = program.part_options(found.parts)
    parser = make_parser(program, own, of_parts)
    if wants_help:
        print(parser.format_help(), flush=True)
        raise SystemExit(0)
    for name in merged:
        if name not in own and name not in of_parts:
            shown = f"option ({places[name]})" if name in places else "option"
            raise unknown_option(name, [*own, *of_parts], shown, "--")
    # "=" before each text: argparse would drop the text "--" and read one that begins with a dash as an option.
    parsed = parser.parse_args([f"--{name}=={text}" for name, text in merged.items()])
    found.texts.update({name: text for name, text in vars(parsed).items() if text is not None})
    return found


def parse_options(config: type[T], argv: Sequence[str] | None, name: str, description: str, prefix: str = "") -> T:
    """The options of a program that has one dataclass of them; ``prefix`` comes before their names in errors."""
    given = read_command_line(Program(name, description, {"": config}), argv)
    with given.naming_files():
        return build_config(config, given.texts, prefix)


def current(program: Program, texts: Texts, part: str) -> str:
    """The name chosen for a part."""
    return texts[part] if part in texts else program.choose(texts)[part]


def part_name(name: str, program: Program) -> str:
    """``selector.name``, as a nested file has it, is ``selector``."""
    part, _, option = name.rpartition(".")
    return part if option == "name" and part in program.parts else name


def refuse_groups(program: Program, own: Mapping[str, Option], layer: Mapping[str, tuple[str, str]]) -> None:
    """Raise InputError where a whole group is assigned a single value."""
    for name, (text, place) in layer.items():
        if name in program.groups and name not in own:
            shown = f"{name} ({place})" if place else name
            raise InputError(shown, text, f"options such as {name}.NAME=VALUE")


def split_words(words: Sequence[str], own: Mapping[str, Option]) -> tuple[list[str], Texts, bool]:
    """The config files, the texts by name and whether there is ``--help``, of ``--name text`` and ``name=text``."""
    files: list[str] = []
    texts: Texts = {}
    wants_help, rest = False, list(words)
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help"):
            wants_help = True
            continue
        word = "--config" if word == "-c" else word
        name, equals, text = word.removeprefix("--").partition("=")
        if not re.fullmatch(r"\w[\w.\-\[\]]*", name) or not (equals or word.startswith("--")):
            raise InputError("command line", word, "options: --NAME VALUE, or NAME=VALUE (options that start with --)")
        if not equals:
            text = take_value(name, rest, own)
        if name == "config":
            files.append(text)
        else:
            texts[name] = text
    return files, texts, wants_help


def take_value(name: str, rest: list[str], own: Mapping[str, Option]) -> str:
    """The value of ``--name``, taken from the words that follow it; that of a switch may be left out."""
    has_value = bool(rest) and not rest[0].startswith("--")
    is_switch = name in own and own[name].kind is bool
    if is_switch and (not has_value or "=" in rest[0] or rest[0].startswith("-")):
        return "true"
    if not has_value and name not in own and name != "config" and "." not in name:
        return ""  # an unknown option, reported as such later
    if not has_value:
        allowed = f"a value; --{name}=VALUE where it begins with two dashes"
        raise InputError(
            f"--{name}", "no value", "a YAML file, or lines `name = value`" if name == "config" else allowed
        )
    return rest.pop(0)


def make_parser(program: Program, own: Mapping[str, Option], of_parts: Mapping[str, Option]) -> Any:
    """ConfigArgParse's parser of all these options, a group for each prefix."""
    import configargparse

    class Parser(configargparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise InputError("command line", message, "options as in --help")

    parser = Parser(
        prog=program.name,
        description=program.description,
        epilog="Options of another part: name it before --help.",
        add_help=False,
        allow_abbrev=False,
        formatter_class=configargparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-h", "--help", action="store_true", default=None, help="Print this and exit.")
    parser.add_argument("-c", "--config", metavar="FILE", help="Config file: YAML, or lines `name = value`.")
    groups: dict[str, Any] = {}
    for name, option in {**own, **of_parts}.items():
        prefix = name.rpartition(".")[0]
        if prefix not in groups:
            groups[prefix] = parser.add_argument_group(prefix or "run")
        default = str(option.default).lower() if option.kind is bool or option.default is None else option.default
        groups[prefix].add_argument(
            f"--{name}",
            dest=name,
            default=None,
            type=lambda text: text[1:],
            metavar="{" + ",".join(program.parts[name]) + "}" if name in program.parts else option.values,
            help=f"{option.help} (default: {default})".replace("%", "%%"),
        )
    return parser


# ---- config files ----------------------------------------------------------------------------------------------------


def read_config(path: str) -> dict[str, tuple[str, str]]:
    """The texts of a config file by dotted name, each with its place "FILE, line N".

    Raises:
        InputError: the file can't be read, is not text, or is malformed (names the line).
    """
    try:
        content = Path(path).expanduser().read_text("utf-8-sig")  # some editors begin a file with a byte-order mark
    except UnicodeDecodeError:
        raise InputError("--config", f"{path} (no text)", "a YAML file, or lines `name = value`") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError("--config", f"{path} ({reason})", "a file that can be read") from None
    found = read_yaml(content, path) if Path(path).suffix in (".yaml", ".yml") else read_lines(content, path)
    return {name: (text, f"{path}, line {line}") for name, (text, line) in found.items()}


def read_lines(content: str, path: str) -> dict[str, tuple[str, int]]:
    """Texts and line numbers of lines `name = value`; empty lines and those that begin with # are skipped."""
    found = {}
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, text = line.partition("=")
        name = name.strip().removeprefix("--")
        if not equals or not name:
            raise InputError("--config", f"{path}, line {number}: {line.strip()}", "lines of the form `name = value`")
        found[name] = unquoted(text.strip()), number
    return found


def unquoted(text: str) -> str:
    """The content of a quoted text, with JSON's escapes; any other text unchanged."""
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "\"'":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text if text[0] in text[1:-1] else text[1:-1]


def read_yaml(content: str, path: str) -> dict[str, tuple[str, int]]:
    """Texts and line numbers of a YAML file's scalars; a list as JSON."""
    import yaml

    try:
        root = yaml.compose(content, Loader=yaml.BaseLoader)
        found: dict[str, tuple[str, int]] = {}
        if root is not None:
            flatten("", root, found)
        return found
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError("--config", f"{path}{line} ({error.problem})", "a YAML file of options") from None
    except (yaml.YAMLError, RecursionError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError("--config", f"{path} ({reason})", "a YAML file of options, a mapping") from None


def flatten(name: str, node: Any, found: dict[str, tuple[str, int]]) -> None:
    """Collect the scalars and lists below a YAML node by their dotted names."""
    if hasattr(node, "value") and node.id == "mapping" and (node.value or not name):
        for key, value in node.value:
            flatten(dotted(name, str(key.value)), value, found)
        return
    if not name:
        raise TypeError(f"a {node.id}")
    text = node.value if node.id == "scalar" else json.dumps(plain(node), ensure_ascii=False)
    found[name] = text, node.start_mark.line + 1


def plain(node: Any) -> Any:
    """Lists, dicts and texts of a YAML node."""
    if node.id == "scalar":
        return node.value
    if node.id == "sequence":
        return [plain(entry) for entry in node.value]
    return {str(key.value): plain(value) for key, value in node.value}


def read_list(name: str, text: str) -> list[Any]:
    """A list of texts and mappings of texts, written as JSON or as YAML's `[{root: a}, {root: b}]`."""
    import yaml

    example = "a list such as [{root: DIR}, {root: DIR2, weight: 2}]"
    try:
        found = json.loads(text)
    except ValueError:
        try:
            found = yaml.load(text, Loader=yaml.BaseLoader)
        except (yaml.YAMLError, RecursionError):
            raise InputError(name, text, f"{example}, as YAML") from None
    if not isinstance(found, list):
        raise InputError(name, text, example)
    return found


PLAIN = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_./+-]*")
UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufdd0-\ufdef\ufeff\ufffe\uffff]")


def write_config(values: Mapping[str, Any], *, yaml: bool) -> str:
    """A config file of values by dotted name, which ``read_config`` gives back: YAML, or lines `name = value`."""
    return "".join(f"{name}{':' if yaml else ' ='} {written(value)}\n" for name, value in values.items())


def written(value: Any) -> str:
    """A value as written in either form of file: quoted unless it is a single word."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, str) and PLAIN.fullmatch(value):
        return value
    if isinstance(value, str | list):
        # JSON is valid YAML, except for characters that YAML refuses.
        return UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
    return str(value)
