"""The Kubernetes manifests against the schemas of Kubernetes, and the overlay with its patches applied."""

import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

from bot.adapters import SETTINGS
from bot.config.sources import load_config
from bot.engine import BACKENDS

ROOT = Path(__file__).parents[2]
OVERLAY = ROOT / "deploy" / "kubernetes"
# The oldest and the newest version whose schemas the installed package has, of those that Kubernetes still supports.
VERSIONS = ("1.34", "1.37")
# Kinds of other projects, whose schemas it lacks, and kustomize's own.
FOREIGN = {"ServiceMonitor", "RayService", "Kustomization"}

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, whose kustomize builds it")


def documents(path: Path) -> Iterator[dict[str, Any]]:
    yield from yaml.safe_load_all(path.read_text(encoding="utf-8"))


@cache
def overlay() -> dict[str, dict[str, Any]]:
    """Return the resources of the overlay by their kinds."""
    built = subprocess.run(["kubectl", "kustomize", OVERLAY], capture_output=True, text=True, timeout=120, check=False)
    assert built.returncode == 0, built.stderr
    return {each["kind"]: each for each in yaml.safe_load_all(built.stdout)}


def check(resource: dict[str, Any]) -> None:
    for version in VERSIONS:
        kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize(
    "path", [ROOT / "docs" / "kubernetes.yaml", *sorted(OVERLAY.glob("[bms]*.yaml"))], ids=lambda path: path.name
)
def test_each_manifest_fits_its_schema(path: Path) -> None:
    for resource in documents(path):
        if resource["kind"] not in FOREIGN:
            check(resource)


@needs_kubectl
def test_the_overlay_fits_the_schemas_with_its_patches_applied() -> None:
    assert overlay().keys() & FOREIGN == {"ServiceMonitor"}
    for kind in overlay().keys() - FOREIGN:
        check(overlay()[kind])


@needs_kubectl
def test_the_bots_of_the_overlay_share_a_database_and_no_volume() -> None:
    assert "PersistentVolumeClaim" not in overlay()
    deployment = overlay()["Deployment"]["spec"]
    assert deployment["replicas"] == 2
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    pod = deployment["template"]["spec"]
    assert all("persistentVolumeClaim" not in volume for volume in pod["volumes"])
    (container,) = pod["containers"]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    (variable,) = container["env"]
    assert variable["name"] == "BOT_STORAGE__URL"
    assert variable["valueFrom"]["secretKeyRef"]["key"] == "storage__url"


@needs_kubectl
def test_budget_service_and_monitor_of_the_overlay_choose_its_bots() -> None:
    labels = overlay()["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert overlay()["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    service = overlay()["Service"]
    assert service["spec"]["selector"] == labels
    monitor = overlay()["ServiceMonitor"]["spec"]
    assert monitor["selector"]["matchLabels"] == service["metadata"]["labels"]
    assert {each["port"] for each in monitor["endpoints"]} == {each["name"] for each in service["spec"]["ports"]}


@needs_kubectl
def test_the_settings_of_the_overlay_are_valid_and_its_network_policy_lets_them_out(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(overlay()["ConfigMap"]["data"]["config.toml"], encoding="utf-8")
    loaded = load_config(config, SETTINGS, BACKENDS).config
    assert loaded.cluster.enabled
    assert loaded.engine.backend == "remote"
    ports = {each["port"] for rule in overlay()["NetworkPolicy"]["spec"]["egress"] for each in rule["ports"]}
    assert ports == {53, 443, 5432, 8000}
    assert all(url.endswith(":8000/v1") for url in loaded.engine.urls)
