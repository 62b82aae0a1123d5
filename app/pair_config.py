"""What `models.yaml` says of a pair: its models, where its workers run, what they may take."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rl_onoff.kinds import AnyPolicy

#: A hundred times more would still fit a socket's path; a service would be at its end long before.
_MOST_REPLICAS = 256

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]

Address = Annotated[str, Field(pattern=r"^[A-Za-z0-9.\[\]:_-]+:[0-9]{1,5}$")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """One model: a folder or a hub id, or (side b only) a LoRA adapter over A's weights."""

    name: Name | None = Field(default=None, description="default: the pair's name with -a or -b")
    path: str | None = None
    adapter: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"

    @field_validator("path", "adapter")
    @classmethod
    def _at_home(cls, source: str | None) -> str | None:
        return None if source is None else os.path.expanduser(source)


class RayConfig(Section):
    """What each worker of a pair takes of a node of a Ray cluster, and which nodes may be it."""

    address: str = Field(default="auto", description="host:port of the cluster's head; auto: that of this machine")
    num_gpus: float = Field(ge=0, description="for both models; several where the engine divides a model over them")
    num_cpus: float = Field(default=1, ge=0)
    resources: dict[str, float] = Field(default={}, description="custom ones; `node:ADDRESS: 0.001` asks for that node")
    labels: dict[str, str] = Field(default={}, description="of the node, as Ray's `label_selector`")


class PairConfig(Section):
    """Two models that share a tokenizer, on one backend."""

    name: Name
    backend: Literal["hf", "table", "vllm", "sglang"] = "hf"
    launch: Literal["local", "remote", "ray"] = Field(default="local", description="where its workers run")
    agents: tuple[Address, ...] = Field(
        default=(), description="of `launch: remote`: host:port of the agent of each of the replicas"
    )
    ray: RayConfig | None = Field(default=None, description="of `launch: ray`")
    gpus: tuple[str, ...] = Field(
        default=(), description="of `launch: local`: CUDA_VISIBLE_DEVICES of each of the replicas (`0`, or `0,1`)"
    )
    python: str | None = Field(
        default=None, description="the interpreter its worker runs in: vLLM and SGLang need environments of their own"
    )
    a: ModelConfig
    b: ModelConfig
    replicas: int = Field(default=1, ge=1, le=_MOST_REPLICAS, description="workers that serve it, each with a copy")
    sequences: int = Field(default=16, ge=1, description="sequences in flight at once, in each worker")
    max_len: int | None = Field(default=None, ge=1, description="default: the models' own")
    trust_remote_code: bool = False
    options: dict[str, Any] = {}
    policies: dict[Name, AnyPolicy] = Field(default={}, description="models of the OpenAI routes, by name")
    examples: str | None = Field(
        default=None, description="a JSON Lines file of problems (`prompt`, `reference`) that the page offers"
    )

    @model_validator(mode="after")
    def _consistent(self) -> PairConfig:
        if self.a.path is None or self.a.adapter is not None:
            raise ValueError("a needs a path and takes no adapter")
        if (self.b.path is None) == (self.b.adapter is None):
            raise ValueError("b needs either a path or an adapter")
        if self.model_a == self.model_b:
            raise ValueError(f"both models are called {self.model_a}")
        if (self.launch == "ray") != (self.ray is not None):
            raise ValueError("`launch: ray` and a section `ray` belong together")
        if (self.launch == "remote") != bool(self.agents) or len(self.agents) not in (0, self.replicas):
            raise ValueError("`launch: remote` and `agents` belong together, one for each of the replicas")
        if self.agents and self.python is not None:
            raise ValueError("python is of `launch: local` and `ray`: an agent starts workers by its own")
        if self.gpus and (self.launch != "local" or len(self.gpus) != self.replicas):
            raise ValueError("gpus are of `launch: local`, one for each of the replicas")
        return self

    @field_validator("python")
    @classmethod
    def _at_home(cls, python: str | None) -> str | None:
        return None if python is None else os.path.expanduser(python)

    @property
    def model_a(self) -> str:
        return self.a.name or f"{self.name}-a"

    @property
    def model_b(self) -> str:
        return self.b.name or f"{self.name}-b"
