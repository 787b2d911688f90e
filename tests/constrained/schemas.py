"""Random schemas, and random instances that are near them."""

from hypothesis import strategies as st

NAMES = ["a", "b", "ab", "é"]
TEXTS = ["", "a", "ab", "abc", "b1", "日本", 'q"']

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 12), st.sampled_from([0.5, 1.0, -2.5, 1.25]), st.sampled_from(TEXTS)
)
instances = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from([*NAMES, "z"]), inner, max_size=3)
    ),
    max_leaves=6,
)

_strings = st.fixed_dictionaries(
    {"type": st.just("string")},
    optional={
        "minLength": st.integers(0, 3),
        "maxLength": st.integers(0, 3),
        "pattern": st.sampled_from(["^a", "b$", "^[a-z]+$", "1|日", "^$", "a.*b"]),
    },
)
_numbers = st.fixed_dictionaries(
    {"type": st.sampled_from(["number", "integer"])},
    optional={
        "minimum": st.integers(-3, 5),
        "maximum": st.integers(0, 12),
        "exclusiveMinimum": st.sampled_from([0, 0.5]),
        "multipleOf": st.sampled_from([2, 0.5, 0.25, 3]),
    },
)
_enums = st.lists(instances, min_size=1, max_size=3).map(lambda values: {"enum": values})


def _arrays(inner):
    return st.fixed_dictionaries(
        {"type": st.just("array")},
        optional={
            "items": inner,
            "prefixItems": st.lists(inner, min_size=1, max_size=2),
            "minItems": st.integers(0, 2),
            "maxItems": st.integers(0, 3),
            "contains": inner,
            "minContains": st.integers(0, 2),
            "maxContains": st.integers(0, 2),
            "uniqueItems": st.booleans(),
        },
    )


def _objects(inner):
    return st.fixed_dictionaries(
        {"type": st.just("object")},
        optional={
            "properties": st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
            "required": st.lists(st.sampled_from(NAMES), max_size=2, unique=True),
            "additionalProperties": inner,
            "patternProperties": st.dictionaries(st.sampled_from(["^a", "b$"]), inner, max_size=2),
            "propertyNames": st.sampled_from([{"maxLength": 1}, {"pattern": "a"}, {"enum": ["a", "é"]}]),
            "minProperties": st.integers(0, 2),
            "maxProperties": st.integers(0, 2),
            "dependentRequired": st.just({"a": ["b"]}),
            "dependentSchemas": inner.map(lambda schema: {"b": schema}),
        },
    )


def _combined(inner):
    return st.one_of(
        _arrays(inner),
        _objects(inner),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
        st.lists(inner, min_size=1, max_size=2).map(lambda options: {"allOf": options}),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"oneOf": options}),
        inner.map(lambda schema: {"not": schema}),
        st.tuples(inner, inner, inner).map(lambda s: {"if": s[0], "then": s[1], "else": s[2]}),
    )


schemas = st.recursive(st.one_of(st.booleans(), _strings, _numbers, _enums, st.just({})), _combined, max_leaves=5)
