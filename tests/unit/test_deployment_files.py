"""The files under docker/: they are what their schemas say, and what they say of each other and of the code is true."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import compose_spec
import kubernetes_validate
import promql_parser
import pytest
import yaml
from packaging.requirements import Requirement
from prometheus_client.parser import text_string_to_metric_families

from app.services.cache.counters import CacheCounters
from app.services.telemetry import Telemetry

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE = ("compose.yaml", "compose.gpu.yaml")
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
MANIFESTS = [p for p in sorted((DOCKER / "k8s").glob("*.yaml")) if p.stem not in ("kustomization", "models")]
#: The series Prometheus makes of its own.
OWN = {"up"}


def read(name: str) -> Any:
    return yaml.safe_load((DOCKER / name).read_text())


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_files_are_of_the_compose_specification(name: str) -> None:
    text = yaml.safe_dump(read(name))  # merge keys resolved, as Compose does
    compose_spec.PyCompose.from_yaml(text)
    with pytest.raises(ValueError, match="deplyo"):
        compose_spec.PyCompose.from_yaml(text.replace("    networks:", "    deplyo: {}\n    networks:", 1))


def test_services_get_longer_to_stop_than_they_take() -> None:
    service = read("compose.yaml")["services"]["service"]
    environment = service["environment"]
    takes = float(environment["RL_ONOFF_DRAIN_SECONDS"]) + float(environment["RL_ONOFF_STOP_SECONDS"])
    assert float(service["stop_grace_period"].removesuffix("s")) > takes
    (pod,) = [d["spec"]["template"]["spec"] for d in manifests("service.yaml") if d["kind"] == "Deployment"]
    assert pod["terminationGracePeriodSeconds"] > takes


def test_secrets_are_files_and_only_loopback_is_published() -> None:
    compose = read("compose.yaml")
    script = (DOCKER / "secrets.sh").read_text()
    for secret in (compose["secrets"] | read("compose.gpu.yaml")["secrets"]).values():
        assert Path(secret["file"]).name in script
    for name, service in compose["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        mounted = {f"/run/secrets/{secret}" for secret in service.get("secrets", [])}
        named = set(re.findall(r"/run/secrets/\w+", json.dumps(service)))
        assert named <= mounted, name
    assert "ports" not in compose["services"]["redis"]
    assert "ports" not in compose["services"]["worker-hf"]


def test_gpus_are_reserved_by_capability() -> None:
    for name, service in read("compose.gpu.yaml")["services"].items():
        if name.startswith("worker-"):
            (device,) = service["deploy"]["resources"]["reservations"]["devices"]
            assert device["capabilities"] == ["gpu"], name
            assert "shm_size" in service, name
            assert "hf_token" in service["secrets"], name


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_dockerfiles_pass_hadolint(path: Path) -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    text = path.read_text()
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE)[-1] == "10001:10001"
    assert "HEALTHCHECK" in text


def test_images_are_pinned() -> None:
    images = [s["image"] for s in read("compose.yaml")["services"].values() if "build" not in s]
    assert images
    for image in images:
        assert re.search(r":v?\d+\.\d+\.\d+", image), image
    for name, extra in (("service.txt", "server"), ("worker-hf.txt", "hf")):
        pinned = [Requirement(line) for line in (DOCKER / name).read_text().splitlines() if not line.startswith("#")]
        assert all(str(one.specifier).startswith("==") for one in pinned), name
        have = {canonical(one.name): next(iter(one.specifier)).version for one in pinned}
        if extra == "hf":
            have["torch"] = re.findall(r"torch==([\d.]+)", (DOCKER / "worker-hf.Dockerfile").read_text())[0]
        for wanted in required(extra):
            assert canonical(wanted.name) in have, f"{name} lacks {wanted}"
            assert wanted.specifier.contains(have[canonical(wanted.name)]), f"{name}: {wanted}"


def required(extra: str) -> list[Requirement]:
    """What pyproject.toml says an extra takes, the package's own needs included."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    found = [Requirement(line) for line in (*project["dependencies"], *extras[extra])]
    nested = [Requirement(line) for one in found for name in one.extras for line in extras[name]]
    return [one for one in (*found, *nested) if one.name != "rl-onoff"]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DOCKER / "k8s" / name).read_text()))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_kubernetes_takes_the_manifests(path: Path) -> None:
    for document in manifests(path.name):
        kubernetes_validate.validate(document, "1.34", strict=True)


def test_the_kustomization_names_every_manifest() -> None:
    kustomization = read("k8s/kustomization.yaml")
    assert {DOCKER / "k8s" / name for name in kustomization["resources"]} == set(MANIFESTS)


def queries() -> list[str]:
    dashboard = json.loads((DOCKER / "monitoring/grafana/dashboards/rl-onoff.json").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = read("monitoring/alerts.yml")["groups"]
    return found + [rule["expr"] for group in rules for rule in group["rules"]]


def series() -> dict[str, set[str]]:
    """The labels of every series the service has, by its name."""
    telemetry = Telemetry()
    CacheCounters(telemetry.registry)
    for collector in {*telemetry.registry._collector_to_names}:
        labels: tuple[str, ...] = collector._labelnames  # type: ignore[attr-defined]
        if labels:
            collector.labels(*labels)  # type: ignore[attr-defined]
    families = text_string_to_metric_families(telemetry.page().decode())
    return {sample.name: {*sample.labels} for family in families for sample in family.samples}


@pytest.mark.parametrize("query", queries())
def test_queries_name_what_there_is(query: str) -> None:
    promql_parser.parse(query.replace("$__rate_interval", "1m"))
    have = series()
    for name, matchers in re.findall(r"\b(rl_onoff_\w+|up)\b(?:\{([^}]*)\})?", query):
        assert name in have or name in OWN, f"no metric {name}"
        if name in have:
            assert set(re.findall(r"(\w+)=", matchers)) <= have[name], query
    labels = {label for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ")}
    known = set().union(*(have[name] for name in re.findall(r"\brl_onoff_\w+", query)))
    assert labels <= known, query
