"""The examples of deployments: units and manifests are complete, agree with each other, and use options that exist."""

import configparser
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from headrace.cli.app import app

DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"
UNITS = sorted(DEPLOY.glob("systemd/*"))
MANIFESTS = [each for path in sorted(DEPLOY.glob("kubernetes/*.yaml")) for each in yaml.safe_load_all(path.read_text())]
SECTIONS = {"service": {"Unit", "Service", "Install"}, "timer": {"Unit", "Timer", "Install"}}
OPEN_PATHS = {"/readyz", "/healthz"}


def options_of(name: str) -> set[str]:
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    return {option for parameter in command.params for option in parameter.opts}


def check_command(arguments: list[str]) -> None:
    name, *rest = arguments
    used = {argument.partition("=")[0] for argument in rest if argument.startswith("--")}
    assert used <= options_of(name), f"headrace {name} has no {used - options_of(name)}"


def unit(path: Path) -> configparser.ConfigParser:
    found = configparser.ConfigParser(strict=True, interpolation=None)
    found.optionxform = str  # type: ignore[assignment, method-assign]
    found.read_string(path.read_text().replace("\\\n", " "))
    return found


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_have_known_sections_and_commands(path: Path) -> None:
    found = unit(path)
    assert set(found.sections()) <= SECTIONS[path.suffix[1:]]
    assert found["Unit"]["Description"]
    if path.suffix == ".service":
        program, *arguments = shlex.split(found["Service"]["ExecStart"])
        assert program.endswith("/headrace")
        check_command(arguments)
    else:
        assert path.with_suffix(".service") in UNITS


def test_a_server_that_stops_has_more_time_than_it_drains() -> None:
    service = unit(DEPLOY / "systemd" / "headrace-serve.service")["Service"]
    drain = re.search(r"--drain (\d+)", service["ExecStart"])
    assert drain is not None
    assert int(service["TimeoutStopSec"]) > int(drain[1]) + 30


def named(kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in MANIFESTS if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def pods() -> list[tuple[str, dict[str, Any]]]:
    """Name and template of the pods of each workload."""
    found = []
    for each in MANIFESTS:
        spec = each["spec"]
        if each["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if "template" in spec:
            found.append((each["metadata"]["name"], spec["template"]))
    return found


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_manifests_have_what_every_object_needs(manifest: dict[str, Any]) -> None:
    assert {"apiVersion", "kind", "metadata", "spec"} <= set(manifest)
    assert re.fullmatch(r"[a-z0-9-]+", manifest["metadata"]["name"])
    selector = manifest["spec"].get("selector", {})
    wanted = selector.get("matchLabels", selector)
    if wanted:
        labels = [template["metadata"]["labels"] for _, template in pods()]
        assert any(wanted.items() <= each.items() for each in labels), f"no pod has {wanted}"


@pytest.mark.parametrize(("name", "template"), pods(), ids=lambda value: value if isinstance(value, str) else "")
def test_containers_use_options_ports_volumes_and_probes_that_exist(name: str, template: dict[str, Any]) -> None:
    (container,) = template["spec"]["containers"]
    check_command(container["args"])
    ports = {each["name"]: each["containerPort"] for each in container.get("ports", ())}
    listened = {int(port) for port in re.findall(r"listen=[\d.]+:(\d+)", " ".join(container["args"]))}
    assert set(ports.values()) == listened
    for probe in ("readinessProbe", "livenessProbe"):
        check = container.get(probe, {})
        target = check.get("httpGet") or check.get("tcpSocket")
        if target is not None:
            assert target["port"] in ports
            assert target.get("path", "/readyz") in OPEN_PATHS
    claims = named("StatefulSet", name)["spec"]["volumeClaimTemplates"] if name == "headrace-serve" else []
    volumes = {each["name"] for each in template["spec"].get("volumes", ())}
    volumes |= {each["metadata"]["name"] for each in claims}
    assert {each["name"] for each in container["volumeMounts"]} == volumes
    mounts = [each["mountPath"] for each in container["volumeMounts"]]
    files = re.findall(r"=?(/[\w./-]+)", " ".join(each for each in container["args"]))
    assert all(any(file.startswith(mount) for mount in mounts) for file in files)


def test_services_lead_to_ports_of_their_pods() -> None:
    for service in (each for each in MANIFESTS if each["kind"] == "Service"):
        (pod,) = [
            template
            for _, template in pods()
            if service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        ]
        ports = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    stateful = named("StatefulSet", "headrace-serve")
    assert named("Service", stateful["spec"]["serviceName"])["spec"]["clusterIP"] == "None"


def test_pods_have_time_to_drain() -> None:
    template = named("StatefulSet", "headrace-serve")["spec"]["template"]
    (drain,) = [int(each[8:]) for each in template["spec"]["containers"][0]["args"] if each.startswith("--drain=")]
    assert template["spec"]["terminationGracePeriodSeconds"] > drain + 30
