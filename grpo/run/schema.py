"""Settings from YAML and the command line, checked against a pydantic model, with errors that teach.

A wrong key, type, value or combination raises UserError, one line: the dotted path, the value, the rule, the repair.
A file from a stranger can do no more than set keys, to plain values of a bounded size.
"""

import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from yaml import CollectionEndEvent, CollectionStartEvent, CSafeLoader, ScalarEvent, YAMLError, parse

from grpo.run.files import at_home, brief, read_text
from grpo.types import UserError

LONGEST = 2**20  # bytes of a config file
LONGEST_VALUE = 3000  # characters of a key or a value; Python prints no integer of more than 4300 digits
DEEPEST = 50  # collections within each other; 100,000 overflow the C stack of the parser
OmegaConf.clear_resolver("oc.env")  # it would copy keys from the environment into the run's config.yaml


PathName = Annotated[str, AfterValidator(lambda name: str(at_home(name)))]  # of a file or a folder


class Section(BaseModel):
    """A part of the tree: frozen, no unknown keys, no silent conversions between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def read_config(
    path: str | Path, overrides: Sequence[str] = (), named: Mapping[str, str] | None = None, presets: Collection[str] = ()
) -> dict[str, Any]:
    """A YAML file as plain values, `key.path=value` overrides applied. Raises UserError.

    A file may start from another one, named relative to itself, and state only what differs: `extends: vague.yaml`.
    named: sections that one word may stand for, and the key that the word is of. `algorithm: dapo` replaces what a section
    had before, and keys (`algorithm.eps_high=0.3`) go on top of it. presets: those of them where giving that key
    (`algorithm.preset=dapo`) does so too.
    """
    where = path
    try:
        layers = [_read_yaml(path)]
        if "extends" in layers[0]:
            where = path = Path(path).parent / at_home(layers[0].pop("extends"))  # for the errors below
            layers.insert(0, _read_yaml(path))
        where = ", ".join([str(path), *overrides])
        whole = [o for o in overrides if "." not in o.partition("=")[0]]
        layers += [OmegaConf.from_dotlist(part) for part in (whole, [o for o in overrides if o not in whole])]
        tree = OmegaConf.create()
        for layer in layers:
            for section, key in (named or {}).items():
                given = layer.get(section)
                if isinstance(given, str):
                    layer[section] = {key: given}
                if isinstance(given, str) or (section in presets and isinstance(given, DictConfig) and key in given):
                    tree.pop(section, None)
            tree = OmegaConf.merge(tree, layer)
        return OmegaConf.to_container(tree, resolve=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a config, "
                        "such as configs/tiny.yaml") from None
    except (YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{brief(str(where))}: not a YAML config ({brief(' '.join(str(error).split()))})") from None


def from_command_line(overrides: Sequence[str]) -> dict[str, Any]:
    """`key.path=value` as plain values in a tree. Raises UserError."""
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)), resolve=True)
    except (YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{brief(' '.join(overrides))}: no key=value ({brief(' '.join(str(error).split()))})") from None


def to_yaml(tree: dict[str, Any]) -> str:
    """Plain values as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(tree))


def _read_yaml(path: str | Path) -> Any:
    """What is large, deep or computed is refused before anything is made of it."""
    text, depth = read_text(Path(path), LONGEST), 0
    for event in parse(text, CSafeLoader):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        value = event.value if isinstance(event, ScalarEvent) else ""
        if depth > DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST}")
        if len(value) > LONGEST_VALUE:
            raise ValueError(f"a value of more than {LONGEST_VALUE} characters")
        if "${" in value or "\0" in value:
            raise ValueError(f"{brief(repr(value), 60)}: a file sets plain values; ${{...}} is not read in it")
    return OmegaConf.create(text)  # which bounds what aliases expand to


Checked = TypeVar("Checked", bound=BaseModel)


def validated(model: type[Checked], raw: Any, prefix: str = "") -> Checked:
    """`raw` as a `model`. Raises UserError, one line for the first thing wrong, the dotted path after `prefix`."""
    if not isinstance(raw, dict):
        raise UserError(f"config: expected sections of keys and values, found {_shown(raw)}")
    try:
        return model.model_validate(raw)
    except PydanticUserError as error:  # the model itself is at fault: a type that its file does not know
        raise UserError(f"{prefix.rstrip('.') or 'config'}: {model.__qualname__} of {model.__module__} is no model that "
                        f"pydantic understands ({brief(' '.join(error.message.split()))}); mend its annotations") from None
    except ValidationError as errors:
        first = min(errors.errors(), key=lambda e: e["type"] == "missing")  # a typo explains what is missing
        raise UserError(_explain(model, first, prefix)) from None


def _explain(model: type[BaseModel], error: dict[str, Any], prefix: str) -> str:
    path = [str(part) for part in error["loc"] if not str(part).startswith("function-")]
    dotted, siblings = brief(prefix + ".".join(path)), _fields_at(model, path[:-1])
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(path[-1], siblings, 1)
        return f"{dotted}: unknown key; " + (f"did you mean {close[0]}?" if close else f"known here: {', '.join(siblings)}")
    field = siblings.get(path[-1]) if path else None
    about = f" ({field.description})" if field is not None and field.description else ""
    example = _example(field)
    repair = f"; such as {dotted}={example}" if example is not None else ""
    if error["type"] == "missing":
        return f"{dotted}: missing{about}; set it in the file or on the command line{repair}"
    if error["type"] == "value_error":  # a rule of ours, which brings its own repair
        return f"{dotted} = {_shown(error['input'])}: {error['msg'].removeprefix('Value error, ')}"
    rule = error["msg"].removeprefix("Input ").removeprefix("String ").replace("should ", "must ")
    return f"{dotted} = {_shown(error['input'])}: {rule}{about}{repair}"


def _example(field: FieldInfo | None) -> Any:
    """A value that a field takes, as on the command line: its example, or its default where that is plain or a list."""
    if field is None:
        return None
    if isinstance(field.default, list | tuple):
        return f"[{','.join(map(str, field.default))}]"
    return field.examples[0] if field.examples else field.default if isinstance(field.default, int | float | str) else None


def _fields_at(model: type[BaseModel], path: list[str]) -> dict[str, Any]:
    for part in path:
        field = model.model_fields.get(part)
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return {}
        model = field.annotation
    return model.model_fields


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return brief("{" + ", ".join(f"{k}: {v}" for k, v in value.items()) + "}")
    return brief(repr(value))
