"""Reads a provider's schema out of its prebuilt CDK package.

The package holds generated JavaScript with its TypeScript in source maps. Above every attribute and
block of a class stands a comment with its flags, and every function that writes HCL tells the types
of what can be set. Between them that is the schema.
"""

from __future__ import annotations

import base64
import json
import re
import tarfile
import tempfile
import zipfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Block = dict[str, Any]
"""``{"attributes": {name: …}, "block_types": {name: …}}``, as terraform shows schemas in JSON."""

_SOURCE_MAP = re.compile(r"sourceMappingURL=data:application/json;base64,(\S+)")
_FLAGS = re.compile(
    r"^ *// (\w+) - computed: (\w+), optional: (\w+), required: (\w+)\n(.*)\n(.*)$", re.MULTILINE
)
_SETTABLE = re.compile(
    r"^ +(\w+): \{\n +value: .*,\n +isBlock: (true|false),\n"
    r' +type: "(\w+)",\n +storageClassType: "(\w+)",',
    re.MULTILINE,
)
_TOP = re.compile(r"^export (?:declare )?(class|function|interface) (\w+)(.*)$", re.MULTILINE)
_FIELD = re.compile(
    r" *private _\w+ = new (?:\w+\.)?(\w+)\(this, \"\w+\"(?:, (?P<is_set>true|false))?\)"
)
_DOC = re.compile(r"/\*\*((?:(?!\*/).)*?)#(\w+) \w+#\w+\}(?:(?!\*/).)*?\*/\s+readonly ", re.DOTALL)
_ADDRESS = re.compile(r"registry\.terraform\.io/providers/([\w-]+/[\w-]+/[\w.-]+)")
_ENUM = re.compile(r'Possible values: (\[(?:"[^"\n]*"(?:, )?)+\])')
"""Written by Google's generator where the provider checks the value."""
_LISTED = re.compile(r"Possible values: ((?:[A-Z][A-Z0-9_]+ )*[A-Z][A-Z0-9_]+)(?:\. |\.? ?$)")
"""The API's own list, which the provider does not check: worth a warning."""
_STRUCT_SUFFIX = re.compile(r"(List|Map|OutputReference)$")

_PRIMITIVES = {"string": "string", "number": "number", "boolean": "bool", "any": "dynamic"}
_COLLECTIONS = {"String": "string", "Number": "number", "Boolean": "bool", "Any": "dynamic"}
_GETTERS: list[tuple[str, Any]] = [
    ("getStringMapAttribute", ["map", "string"]),
    ("getNumberMapAttribute", ["map", "number"]),
    ("getBooleanMapAttribute", ["map", "bool"]),
    ("getAnyMapAttribute", ["map", "dynamic"]),
    ("getNumberListAttribute", ["list", "number"]),
    ("getListAttribute", ["list", "string"]),
    ("getStringAttribute", "string"),
    ("getNumberAttribute", "number"),
    ("getBooleanAttribute", "bool"),
]
_ROOTS = {
    "TerraformResource": "resource_schemas",
    "TerraformDataSource": "data_source_schemas",
    "TerraformProvider": "provider",
}


@dataclass(frozen=True)
class ProviderSchema:
    """``address`` as ``registry.terraform.io/hashicorp/google``; ``schema`` as
    `terraform providers schema` has it; ``guesses`` are the types taken as "any"."""

    address: str
    version: str
    schema: dict[str, Any]
    guesses: list[str]


def read_package(wheel: Path) -> ProviderSchema:
    """The schema in a wheel of a prebuilt CDK package."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            inner = next(name for name in archive.namelist() if name.endswith(".jsii.tgz"))
            bundle = archive.extract(inner, folder)
        with tarfile.open(bundle) as tar:
            wanted = [one for one in tar if "/lib/" in one.name and one.name.endswith(".js")]
            for one in wanted:
                # Not extractall: its filter came with Python 3.11.4, and no filter is no choice.
                target = (Path(folder) / one.name).resolve()
                content = tar.extractfile(one)
                if content is None or not target.is_relative_to(Path(folder).resolve()):
                    raise ValueError(
                        f"{wheel.name} holds {one.name!r}, which is no file of its own"
                    )
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
        library = Path(folder) / "package" / "lib"
        folders = sorted({str(path.parent) for path in library.glob("*/index.js")})
        with ProcessPoolExecutor() as pool:
            roots = [root for root in pool.map(_read_root, folders, chunksize=16) if root]
    return _assemble(roots)


@dataclass(frozen=True)
class _Root:
    kind: str
    type_name: str
    address: str
    block: Block
    guesses: list[str]


def _assemble(roots: list[_Root]) -> ProviderSchema:
    schema: dict[str, Any] = {"resource_schemas": {}, "data_source_schemas": {}}
    for root in roots:
        entry = {"version": 0, "block": root.block}
        if root.kind == "provider":
            root.block["attributes"].pop("alias", None)  # terraform's own
            schema["provider"] = entry
        else:
            schema[root.kind][root.type_name] = entry
    namespace, name, version = next(root.address for root in roots if root.address).split("/")
    guesses = [f"{root.type_name}: {guess}" for root in roots for guess in root.guesses]
    return ProviderSchema(f"registry.terraform.io/{namespace}/{name}", version, schema, guesses)


def _read_root(folder: str) -> _Root | None:
    return _Module(Path(folder)).root()


class _Module:
    """The generated TypeScript of one resource, data source or provider."""

    def __init__(self, folder: Path) -> None:
        self.guesses: list[str] = []
        self._classes: dict[str, tuple[str, str]] = {}  # name: base class, body
        self._functions: dict[str, str] = {}  # lower-cased struct name: body
        self._values: dict[tuple[str, str], dict[str, list[str]]] = {}  # interface, attribute
        self._open: list[str] = []  # structs being read, outermost first
        text = "".join(_source(path) for path in sorted(folder.rglob("*.js")))
        marks = list(_TOP.finditer(text))
        for mark, after in zip(marks, [*marks[1:], None], strict=True):
            self._take(mark, text[mark.end() : after.start() if after else len(text)])

    def _take(self, mark: re.Match[str], body: str) -> None:
        kind, name, rest = mark.groups()
        if kind == "class":
            base = re.search(r"extends \w+\.(\w+)", rest)
            self._classes[name] = (base[1] if base else "", body)
        elif kind == "function" and name.endswith("ToHclTerraform"):
            self._functions[name.removesuffix("ToHclTerraform").lower()] = body
        elif kind == "interface":
            for doc, attribute in _DOC.findall(body):
                words = re.sub(r"[\s*]+", " ", doc)
                if found := _ENUM.search(words):
                    self._values[name, attribute] = {"enum": json.loads(found[1])}
                elif found := _LISTED.search(words.partition("Docs at")[0]):
                    self._values[name, attribute] = {"listed": found[1].split()}

    def root(self) -> _Root | None:
        for name, (base, body) in self._classes.items():
            if base in _ROOTS:
                type_name = re.search(r'tfResourceType = "(\w+)"', body)
                assert type_name is not None
                docs = _ADDRESS.search(body)
                block = self._block(body, name + "Config", body)
                address = docs[1] if docs else ""
                return _Root(_ROOTS[base], type_name[1], address, block, self.guesses)
        return None

    def _struct(self, name: str) -> Block:
        body = self._classes.get(name + "OutputReference", ("", ""))[1]
        settable = self._functions.get(name.lower(), "")
        if not body and not settable:
            self.guesses.append(f"{name}: not found")
        return self._block(body, name, settable)

    def _block(self, body: str, interface: str, hcl: str) -> Block:
        settable = {found[1]: found.groups()[1:] for found in _SETTABLE.finditer(hcl)}
        block: Block = {"attributes": {}, "block_types": {}}
        for found in _FLAGS.finditer(body):
            key = found[1]
            computed, optional, required = (flag == "true" for flag in found.group(2, 3, 4))
            is_block, shape, storage = settable.pop(key, ("false", "", ""))
            made = _FIELD.match(found[5])
            if is_block == "true" and not computed:
                self._nest(block, key, made, shape, storage, required=required)
                continue
            flags = {"required": required, "optional": optional, "computed": computed}
            block["attributes"][key] = {
                "type": self._type(f"{interface}.{key}", found, made, shape, storage),
                **{name: True for name, is_set in flags.items() if is_set},
                **self._values.get((interface, key), {}),
            }
        # What is left is in the provider's own blocks: no output class there, so no flags either.
        for key, (is_block, shape, storage) in settable.items():
            if is_block == "true":
                self._nest(block, key, None, shape, storage, required=False)
            else:
                kind = self._settable_type(shape, storage)
                block["attributes"][key] = {"type": kind, "optional": True}
        return {name: part for name, part in block.items() if part}

    def _nest(
        self,
        block: Block,
        key: str,
        made: re.Match[str] | None,
        shape: str,
        storage: str,
        *,
        required: bool,
    ) -> None:
        struct = _STRUCT_SUFFIX.sub("", made[1] if made else storage)
        if struct in self._open:  # two structs got one name: what is inside is unknown
            self.guesses.append(f"{struct}.{key}: recursive")
            flag = "required" if required else "optional"
            block.setdefault("attributes", {})[key] = {"type": "dynamic", flag: True}
            return
        self._open.append(struct)
        nesting = {"struct": "single"}.get(shape, shape)
        nested: Block = {"nesting_mode": nesting, "block": self._struct(struct)}
        self._open.pop()
        if nesting in ("list", "set"):
            if made is not None and made[1].endswith("OutputReference"):
                nested["max_items"] = 1
            if required:
                nested["min_items"] = 1
        block["block_types"][key] = nested

    def _type(
        self, owner: str, found: re.Match[str], made: re.Match[str] | None, shape: str, storage: str
    ) -> Any:
        if made is not None:
            kind = self._wrapped_type(made[1], shape, is_set=made["is_set"] == "true")
            if kind is not None:
                return kind
        elif shape:
            return self._settable_type(shape, storage)
        else:
            for getter, kind in _GETTERS:
                if f"this.{getter}(" in found[6]:
                    return ["set", kind[1]] if "Fn.tolist(" in found[6] else kind
        self.guesses.append(f"{owner}: {found[5].strip()}")
        return "dynamic"

    def _wrapped_type(self, name: str, shape: str, *, is_set: bool) -> Any:
        """The type of an attribute that is read through a class of its own; None: not known."""
        collection = "set" if is_set else "list"
        for prefix, element in _COLLECTIONS.items():
            if name == prefix + "Map":
                return ["map", element]
            if name == prefix + "MapList":
                return [collection, ["map", element]]
        base = self._classes.get(name, ("", ""))[0]
        if base not in ("ComplexList", "ComplexMap", "ComplexObject"):
            return None
        inner = ["object", _members(self._struct(_STRUCT_SUFFIX.sub("", name)))]
        if base == "ComplexObject":
            return [shape, inner] if shape in ("list", "set") else inner
        return ["map" if base == "ComplexMap" else collection, inner]

    def _settable_type(self, shape: str, storage: str) -> Any:
        if shape == "simple":
            return _PRIMITIVES.get(storage, "dynamic")
        element = re.sub(r"(List|Map)$", "", storage)
        if element in _PRIMITIVES:
            return [shape, _PRIMITIVES[element]]
        self.guesses.append(f"{shape} of {storage}")
        return "dynamic"


def _source(path: Path) -> str:
    found = _SOURCE_MAP.search(path.read_text("utf-8"))
    if found is None:
        return ""
    source: str = json.loads(base64.b64decode(found[1]))["sourcesContent"][0]
    return source


def _members(block: Block) -> dict[str, Any]:
    """A block as the members of an object type, for attributes that hold objects."""
    members = {key: one["type"] for key, one in block.get("attributes", {}).items()}
    for key, nested in block.get("block_types", {}).items():
        inner = ["object", _members(nested["block"])]
        mode = nested["nesting_mode"]
        members[key] = inner if mode == "single" else [mode, inner]
    return members
