"""Names in requests to the pairs that serve them."""

from __future__ import annotations

from dataclasses import dataclass

from app.pair_config import PairConfig
from app.services.supervisor import Supervisor
from app.services.worker import LoadedPair
from rl_onoff.errors import InvalidField, UnknownModel
from rl_onoff.policy import Policy
from rl_onoff.schemas import ModelCard, ModelsResponse, PairCard
from workers.wire import ModelInfo, Side


@dataclass(frozen=True, slots=True)
class ServedModel:
    pair: LoadedPair
    name: str
    side: Side

    @property
    def info(self) -> ModelInfo:
        return self.pair.info.a if self.side == "a" else self.pair.info.b


@dataclass(frozen=True, slots=True)
class ServedPair:
    """A pair in the order a request names it: with `swapped` the request's a is the worker's b."""

    pair: LoadedPair
    swapped: bool

    @property
    def side_a(self) -> Side:
        """Where the worker has the request's A."""
        return "b" if self.swapped else "a"

    @property
    def names(self) -> tuple[str, str]:
        config = self.pair.config
        return (config.model_b, config.model_a) if self.swapped else (config.model_a, config.model_b)

    @property
    def infos(self) -> tuple[ModelInfo, ModelInfo]:
        info = self.pair.info
        return (info.b, info.a) if self.swapped else (info.a, info.b)


class Registry:
    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def model(self, name: str) -> ServedModel:
        for worker in self._supervisor.pairs.values():
            if name == worker.config.model_a:
                return ServedModel(worker.loaded(), name, "a")
            if name == worker.config.model_b:
                return ServedModel(worker.loaded(), name, "b")
        raise self._unknown("model")

    def pair(self, a: str | None, b: str | None) -> ServedPair:
        """The pair `a` and `b` name, in either order; the only one if they name none."""
        workers = list(self._supervisor.pairs.values())
        known = {name for worker in workers for name in _names(worker.config)}
        for field, name in (("a", a), ("b", b)):
            if name is not None and name not in known:
                raise self._unknown(field)
        if a is None and b is None:
            if len(workers) > 1:
                raise InvalidField(f"name the pair's models: {self._pairs()}", field="a")
            return ServedPair(workers[0].loaded(), swapped=False)
        for worker in workers:
            for swapped in (False, True):
                first, second = _names(worker.config)[:: -1 if swapped else 1]
                if a in (None, first) and b in (None, second):
                    return ServedPair(worker.loaded(), swapped)
        raise InvalidField(f"these two are not a pair: {self._pairs()}", field="b")

    def has_model(self, name: str) -> bool:
        return any(name in _names(worker.config) for worker in self._supervisor.pairs.values())

    def models_of(self, pair: str) -> tuple[str, str] | None:
        """The names of a pair's A and B; None where there is no such pair."""
        worker = self._supervisor.pairs.get(pair)
        return None if worker is None else _names(worker.config)

    @property
    def pair_names(self) -> list[str]:
        return list(self._supervisor.pairs)

    @property
    def policies(self) -> dict[str, dict[str, Policy]]:
        """The policies the configuration names, by pair."""
        return {name: dict(worker.config.policies) for name, worker in self._supervisor.pairs.items()}

    @property
    def failed(self) -> bool:
        """Whether a pair is lost for good: the service is about to end."""
        return any(worker.state == "failed" for worker in self._supervisor.pairs.values())

    def pair_called(self, name: str) -> ServedPair:
        """The pair of this name, which there is."""
        return ServedPair(self._supervisor.pairs[name].loaded(), swapped=False)

    def cards(self) -> ModelsResponse:
        models = []
        for worker in self._supervisor.pairs.values():
            infos = (worker.info.a, worker.info.b) if worker.info else (None, None)
            for side, name, info in zip(("a", "b"), _names(worker.config), infos, strict=True):
                card = ModelCard(
                    name=name,
                    pair=worker.config.name,
                    side="a" if side == "a" else "b",
                    backend=worker.config.backend,
                    state=worker.state,
                )
                if info is not None:
                    card.dtype, card.vocab_size = info.dtype, info.vocab_size
                    card.max_len, card.fingerprint = info.max_len, info.fingerprint
                models.append(card)
        pairs = [
            PairCard(name=worker.config.name, a=worker.config.model_a, b=worker.config.model_b, replicas=worker.states)
            for worker in self._supervisor.pairs.values()
        ]
        return ModelsResponse(models=models, pairs=pairs)

    def _pairs(self) -> str:
        return "; ".join("a={}, b={}".format(*_names(w.config)) for w in self._supervisor.pairs.values())

    def _unknown(self, field: str) -> UnknownModel:
        names = [name for worker in self._supervisor.pairs.values() for name in _names(worker.config)]
        return UnknownModel(f"{field}: no such model; there are {', '.join(names)}", models=names)


def _names(config: PairConfig) -> tuple[str, str]:
    return config.model_a, config.model_b
