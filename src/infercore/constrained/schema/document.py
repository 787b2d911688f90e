"""`Document`: the places of a JSON Schema, references resolved, the drafts told apart."""

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urljoin

from infercore.errors import UnsupportedSchema

Json = Any
Literal = tuple[int, bool]
"""A place of the schema, and whether a value must satisfy it (True) or must not."""

TRUE: Literal = (0, True)
FALSE: Literal = (0, False)

_IN_ONE = ("additionalProperties", "propertyNames", "contains", "not", "if", "then", "else", "additionalItems",
           "unevaluatedItems", "unevaluatedProperties", "contentSchema")  # fmt: skip
_IN_LIST = ("allOf", "anyOf", "oneOf", "prefixItems")
_IN_DICT = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


@dataclass(slots=True)
class Place:
    """One schema inside the document.

    Attributes:
        schema: a dict or a bool.
        base: the URI that references in it are relative to.
        pointer: where it stands, as a JSON pointer.
        draft: 4, 6, 7, 2019 or 2020.
    """

    schema: Json
    base: str
    pointer: str
    draft: int


@dataclass
class Document:
    """Every place of a schema by number; place 0 is the schema `true`.

    Args:
        root: the whole schema.
        ignore: keywords that the caller asked in writing to ignore.
        ordered: properties come in the order in which they are declared.
    """

    root: Json
    ignore: frozenset[str] = frozenset()
    ordered: bool = False
    places: list[Place] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._of_schema: dict[int, int] = {}
        self._by_uri: dict[str, int] = {}
        self._synthetic: dict[str, int] = {}
        self._anchors: dict[str, int] = {}  # how many places have a dynamic anchor of this name
        self.places.append(Place(True, "", "", 2020))
        self.root_place = self._scan(self.root, "", "", 2020)

    def literal(self, schema: Json, parent: Place, suffix: str) -> Literal:
        """The literal of a subschema of `parent` that stands at `suffix` below it."""
        if schema is True or (isinstance(schema, dict) and not schema):
            return TRUE
        if schema is False:
            return FALSE
        index = self._of_schema.get(id(schema))
        if index is None:
            index = self._scan(schema, parent.base, f"{parent.pointer}/{suffix}", parent.draft)
        return (index, True)

    def synthetic(self, key: str, schema: Json, parent: Place) -> Literal:
        """The literal of a schema that stands nowhere in the document; equal keys give equal literals."""
        if key not in self._synthetic:
            self._synthetic[key] = self._add(Place(schema, parent.base, parent.pointer, 2020))
        return (self._synthetic[key], True)

    def constant(self, text: str) -> Literal:
        """The literal of `{"const": value}` for the value that `text` spells."""
        return self.synthetic(text, {"const": json.loads(text)}, self.places[0])

    def resolve(self, reference: Json, place: Place) -> Literal:
        """The literal that `$ref` at `place` points to. Raises: UnsupportedSchema where it points nowhere."""
        if not isinstance(reference, str):
            raise UnsupportedSchema(f"$ref is {reference!r}, expected a string", pointer=f"{place.pointer}/$ref")
        target = urljoin(place.base, reference) if place.base else reference
        for key in (target, target.removesuffix("#"), reference):
            if key in self._by_uri:
                return self._as_literal(self._by_uri[key])
        base, _, fragment = target.partition("#")
        if reference.startswith("#"):
            base = place.base
        holder = self._by_uri.get(base, self._by_uri.get(base + "#"))
        if holder is None and base in _METASCHEMAS:
            return TRUE if not fragment else self._missing(reference, place)
        if holder is None:
            return self._missing(reference, place)
        schema = self.places[holder].schema
        if fragment and not fragment.startswith("/"):
            return self._missing(reference, place)
        pointer, parent = self.places[holder].pointer, self.places[holder]
        for part in fragment.split("/")[1:]:
            part = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(schema, list) and part.isdigit() and int(part) < len(schema):
                schema = schema[int(part)]
            elif isinstance(schema, dict) and part in schema:
                schema = schema[part]
            else:
                return self._missing(reference, place)
            pointer += "/" + part.replace("~", "~0").replace("/", "~1")
            known = self._of_schema.get(id(schema))
            if known is not None:
                parent = self.places[known]
        if isinstance(schema, bool):
            return TRUE if schema else FALSE
        if not isinstance(schema, dict):
            return self._missing(reference, place)
        known = self._of_schema.get(id(schema))
        if known is None:
            known = self._scan(schema, parent.base, pointer, parent.draft)
        return self._as_literal(known)

    def is_static(self, reference: Json, place: Place) -> bool:
        """Whether a dynamic reference can only ever point to one place."""
        if reference == "#":
            return self._anchors.get("#recursive", 0) <= 1 and place.base == self.places[self.root_place].base
        name = str(reference).partition("#")[2]
        return name.startswith("/") or self._anchors.get(name, 0) <= 1

    def _as_literal(self, index: int) -> Literal:
        schema = self.places[index].schema
        if isinstance(schema, bool):
            return TRUE if schema else FALSE
        return (index, True)

    def _missing(self, reference: str, place: Place) -> Literal:
        raise UnsupportedSchema(
            f"$ref {reference!r} points to nothing inside the schema; remote schemas are never fetched, put them "
            "under $defs with their $id",
            pointer=f"{place.pointer}/$ref",
        )

    def _add(self, place: Place) -> int:
        self.places.append(place)
        return len(self.places) - 1

    def _scan(self, schema: Json, base: str, pointer: str, draft: int) -> int:
        """Register `schema` and all below it."""
        if not isinstance(schema, dict | bool):
            raise UnsupportedSchema(
                f"a schema is {type(schema).__name__}, expected an object or a boolean", pointer=pointer
            )
        if isinstance(schema, dict):
            draft = _draft(schema.get("$schema"), draft)
            identifier = schema.get("$id", schema.get("id") if draft == 4 else None)
            if isinstance(identifier, str) and not ("$ref" in schema and draft <= 7):
                if identifier.startswith("#"):
                    self._by_uri.setdefault(base + identifier, len(self.places))
                else:
                    base = urljoin(base, identifier) if base else identifier
                    base = base.removesuffix("#")
        index = self._add(Place(schema, base, pointer, draft))
        if not pointer or (isinstance(schema, dict) and ("$id" in schema or "id" in schema)):
            self._by_uri.setdefault(base, index)
        if isinstance(schema, bool):
            return index
        self._of_schema[id(schema)] = index
        for keyword in ("$anchor", "$dynamicAnchor"):
            if isinstance(schema.get(keyword), str):
                self._by_uri.setdefault(f"{base}#{schema[keyword]}", index)
        if isinstance(schema.get("$dynamicAnchor"), str):
            self._anchors[schema["$dynamicAnchor"]] = self._anchors.get(schema["$dynamicAnchor"], 0) + 1
        if schema.get("$recursiveAnchor") is True:
            self._anchors["#recursive"] = self._anchors.get("#recursive", 0) + 1
        for keyword, value in schema.items():
            at = f"{pointer}/{keyword}"
            if keyword in _IN_ONE and isinstance(value, dict | bool):
                self._scan_child(value, base, at, draft)
            elif (keyword in _IN_LIST or keyword == "items") and isinstance(value, list):
                for i, item in enumerate(value):
                    self._scan_child(item, base, f"{at}/{i}", draft)
            elif keyword == "items" and isinstance(value, dict | bool):
                self._scan_child(value, base, at, draft)
            elif keyword in (*_IN_DICT, "dependencies") and isinstance(value, dict):
                for name, item in value.items():
                    escaped = name.replace("~", "~0").replace("/", "~1")
                    if keyword != "dependencies" or isinstance(item, dict | bool):
                        self._scan_child(item, base, f"{at}/{escaped}", draft)
        return index

    def _scan_child(self, schema: Json, base: str, pointer: str, draft: int) -> None:
        if isinstance(schema, dict) and id(schema) not in self._of_schema:
            self._scan(schema, base, pointer, draft)


def _draft(declared: Json, inherited: int) -> int:
    if not isinstance(declared, str):
        return inherited
    for mark, draft in (("draft-03", 4), ("draft-04", 4), ("draft-06", 6), ("draft-07", 7), ("2019-09", 2019)):
        if mark in declared:
            return draft
    return 2020 if "2020-12" in declared else inherited


_METASCHEMAS = frozenset()  # type: frozenset[str]
