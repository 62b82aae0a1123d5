"""The API as one page of plain HTML, from the OpenAPI document: nothing is fetched from anywhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from app.page import page

Node = dict[str, Any]

_BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} characters",
    "minItems": "at least {}",
    "maxItems": "at most {}",
}


def docs_page(document: Node) -> str:
    """Routes with their bodies and answers; then every schema with its fields."""
    operations = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    contents = " ".join(f'<a href="#{escape(path)}">{escape(path)}</a>' for _, path, _ in operations)
    return page(
        "rl-onoff API",
        f"<h1>rl-onoff {escape(document['info']['version'])}: the API</h1><p>{_text(document['info'])}</p>"
        f'<p>This page as a document for programs: <a href="/openapi.json">/openapi.json</a></p><p>{contents}</p>'
        + "".join(_operation(*operation) for operation in operations)
        + "<h2>Schemas</h2>"
        + "".join(_schema(name, schema) for name, schema in document["components"]["schemas"].items()),
    )


def _operation(method: str, path: str, operation: Node) -> str:
    body = operation.get("requestBody", {}).get("content", {})
    taken = "".join(f"<p>Body: {_type(media['schema'])}</p>" for media in body.values())
    answers = "".join(
        f"<tr><td>{escape(status)}<td>{_answer(answer)}<td>{_text(answer)}</tr>"
        for status, answer in operation["responses"].items()
    )
    return (
        f'<h2 id="{escape(path)}"><code>{method} {escape(path)}</code></h2>'
        f"<p><b>{escape(operation.get('summary', ''))}</b></p><p>{_text(operation)}</p>{taken}"
        f"<table><tr><th>Status<th>Answer<th></tr>{answers}</table>"
    )


def _answer(answer: Node) -> str:
    kinds = answer.get("content", {}).items()
    return "<br>".join(f"{_linked(media.get('schema', {}))} <code>{escape(kind)}</code>" for kind, media in kinds)


def _linked(schema: Node) -> str:
    """A type, but not one that is written out in the answer itself (a problem)."""
    return _type(schema) if "$ref" in schema else escape(schema.get("title", ""))


def _schema(name: str, schema: Node) -> str:
    required = schema.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code><td>{_type(node)}<td>{_default(node, field in required)}<td>{_text(node)}"
        for field, node in schema.get("properties", {}).items()
    )
    return (
        f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{_text(schema)}</p>'
        f"<table><tr><th>Field<th>Type<th>Default<th></tr>{rows}</table>"
    )


def _type(node: Node) -> str:
    """A type in words; schemas as links."""
    if "$ref" in node:
        name = escape(node["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for union in ("anyOf", "oneOf", "allOf"):
        if union in node:
            return " or ".join(_type(each) for each in node[union])
    if "const" in node or "enum" in node:
        values = node.get("enum", [node.get("const")])
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in values)
    kind = escape(str(node.get("type", "anything")))
    if kind == "array":
        kind = f"list of {_type(node.get('items', {}))}"
    elif isinstance(node.get("additionalProperties"), dict):
        kind = f"object of {_type(node['additionalProperties'])}"
    bounds = [text.format(node[name]) for name, text in _BOUNDS.items() if name in node]
    return kind + (f" ({escape(', '.join(bounds))})" if bounds else "")


def _default(node: Node, required: bool) -> str:
    if required:
        return "required"
    return f"<code>{escape(json.dumps(node['default']))}</code>" if "default" in node else ""


def _text(node: Node) -> str:
    return escape(node.get("description", "")).replace("\n\n", "<br>")
