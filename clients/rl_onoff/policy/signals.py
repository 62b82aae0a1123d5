"""What a policy may read, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import core_schema

from rl_onoff.divergence import FAMILIES, parse, pattern, spellings, wrong_parameter
from rl_onoff.divergence import MEASURES as ROW_MEASURES

#: Signals of the tokens the two models would emit, beside the measures of their rows.
TOKEN_SIGNALS: Final = ("delta_logp_a", "delta_logp_b", "prob_of_a_in_b")


@dataclass(frozen=True)
class OneOf:
    """Annotates a string field: one of these measures; a family's name stands for its measures."""

    names: tuple[str, ...]

    def __call__(self, name: str) -> str:
        """The name, if it is allowed; the message of the ValueError holds what is, but no input, numbers apart."""
        if self.allows(name):
            return name
        wrong = wrong_parameter(name) if name.partition(":")[0] in self.names else None
        raise ValueError(wrong or f"should be one of {spellings(self.names)}")

    def allows(self, name: str) -> bool:
        if name in self.names:
            return name not in FAMILIES
        try:
            return parse(name)[0] in self.names
        except ValueError:
            return False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self, handler(source))

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: Any) -> dict[str, Any]:
        plain = [name for name in self.names if name not in FAMILIES]
        families = [{"type": "string", "pattern": f"^{pattern(name)}$"} for name in self.names if name in FAMILIES]
        return {"anyOf": [{"type": "string", "enum": plain}, *families]}


SIGNALS: Final = OneOf(
    (*(name for name in ROW_MEASURES if name != "delta_logp"), *FAMILIES, *TOKEN_SIGNALS),
)

#: What the divergence policy may compare: measures that grow as the rows part.
PolicyMeasure = Annotated[
    str, OneOf(("js", "kl_ab", "kl_ba", "tv", "hellinger", "entropy_a", "entropy_b", "renyi", "renyi_ba"))
]
Nats = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
