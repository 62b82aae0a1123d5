"""Chat templates, rendered as transformers renders them: same environment, same globals, same sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rl_onoff.errors import InvalidField


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote, for training; here it only has to parse."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which would change the tokens.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:  # noqa: A002  (the name templates may use)
    return datetime.now().strftime(format)


#: What a template raises by itself, and what its expressions can.
_TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError)


@lru_cache(maxsize=64)
def _compiled(template: str) -> Callable[..., str]:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template).render


def render(template: str, messages: Sequence[Mapping[str, str]], special_tokens: Mapping[str, str], field: str) -> str:
    """The prompt that asks the assistant to answer `messages`. What the template refuses is an InvalidField."""
    try:
        return _compiled(template)(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **special_tokens,
        )
    except _TEMPLATE_ERRORS as error:
        raise InvalidField(f"the chat template refuses this: {str(error)[:200]}", field=field) from error
