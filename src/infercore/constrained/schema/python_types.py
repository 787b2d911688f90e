"""JSON Schema of Python types, through pydantic where it is installed."""

from typing import Any


def schema_of_type(type_: Any) -> Any:
    """The JSON Schema of a Pydantic model, dataclass, TypedDict, Enum, Literal or any other type pydantic knows.

    Raises: TypeError where pydantic is missing or does not know the type.
    """
    if hasattr(type_, "model_json_schema"):
        return type_.model_json_schema()
    try:
        from pydantic import TypeAdapter
    except ImportError:
        raise TypeError(
            f"json_schema() got {type_!r}, and Python types need pydantic; pip install pydantic, or pass a dict"
        ) from None
    try:
        return TypeAdapter(type_).json_schema()
    except Exception as error:
        raise TypeError(f"json_schema() got {type_!r}, which pydantic cannot describe: {error}") from error
