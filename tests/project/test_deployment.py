"""Compose files, Kubernetes manifest, alerts, release workflow and Dockerfile name settings and files that exist."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml  # type: ignore[import-untyped]

from bot.adapters import SETTINGS
from bot.config.schema import known_settings, variable
from bot.config.sources import load_config
from bot.engine import BACKENDS
from bot.observability.metrics import PREFIX

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "compose.yaml").read_text(encoding="utf-8")
CLUSTER = (ROOT / "compose.cluster.yaml").read_text(encoding="utf-8")
MANIFEST = (ROOT / "docs" / "kubernetes.yaml").read_text(encoding="utf-8")
KNOWN = known_settings(SETTINGS)


DOCS = ROOT / "docs"


def compose() -> dict[str, Any]:
    service: dict[str, Any] = yaml.safe_load(COMPOSE)["services"]["bot"]
    return service


def manifest(kind: str) -> dict[str, Any]:
    (found,) = (each for each in yaml.safe_load_all(MANIFEST) if each["kind"] == kind)
    return dict(found)


def test_compose_passes_every_token_and_needs_none() -> None:
    needed = {variable(("adapters", name, token)) for name, each in SETTINGS.items() for token in each.tokens}
    passed = {name: value for name, value in compose()["environment"].items() if name in needed}
    assert passed == {name: f"${{{name}:-}}" for name in needed}
    assert "./secrets:/run/secrets:ro" in compose()["volumes"]
    assert "secrets" not in yaml.safe_load(COMPOSE)


def test_compose_asks_for_a_gpu_only_with_its_override_file() -> None:
    assert "deploy" not in compose()
    assert compose()["build"]["args"]["TORCH_INDEX"].endswith("/cpu")
    gpu = yaml.safe_load((ROOT / "compose.gpu.yaml").read_text(encoding="utf-8"))["services"]["bot"]
    assert gpu["build"]["args"]["TORCH_INDEX"] == ""
    assert gpu["deploy"]["resources"]["reservations"]["devices"][0]["driver"] == "nvidia"


def test_compose_keeps_a_bot_without_a_platform_running() -> None:
    # It answers on standard input, whose end would end it.
    assert compose()["stdin_open"] is True


def test_the_variables_of_compose_and_manifest_are_settings() -> None:
    settings = {variable(key) for key in KNOWN}
    for text in (COMPOSE, MANIFEST):
        assert set(re.findall(r"\bBOT_\w+", text)) <= settings


@pytest.mark.parametrize("service", ["bot-1", "bot-2", "engine-1", "engine-2"])
def test_the_services_of_the_cluster_have_valid_settings(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    services = yaml.safe_load(CLUSTER)["services"]
    given = {"POSTGRES_PASSWORD": "sesame", "ENGINE_KEY": "k" * 64}
    for name, value in services[service]["environment"].items():
        monkeypatch.setenv(name, re.sub(r"\$\{(\w+):.*?\}", lambda found: given.get(found[1], ""), value))

    config = load_config(ROOT / "config.toml", SETTINGS, BACKENDS).config

    if service.startswith("bot"):
        assert config.cluster.enabled
        engines = {urlsplit(url).hostname for url in config.engine.urls}
        assert engines == {name for name in services if name.startswith("engine")}
        hosts = {
            each for name in engines for each in str(services[name]["environment"]["BOT_SERVER__HOSTS"]).split(",")
        }
        assert engines == hosts, "an engine refuses calls to another name"
        assert config.engine.key is not None
        assert config.engine.key.get_secret_value() == given["ENGINE_KEY"]
        assert f"@{urlsplit(config.storage.url.get_secret_value()).hostname}" == "@database"
    else:
        assert services[service]["command"] == ["serve"]
        assert config.server.keys is not None


def test_the_settings_in_the_manifest_are_valid(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(manifest("ConfigMap")["data"]["config.toml"], encoding="utf-8")

    loaded = load_config(config, SETTINGS, BACKENDS)

    assert loaded.config.engine.quantization == "int4"
    assert loaded.config.operations.host == "0.0.0.0"


def test_the_volume_of_the_manifest_has_room_for_its_model() -> None:
    assert 'model = "THUDM/chatglm-6b"' in manifest("ConfigMap")["data"]["config.toml"]
    size = manifest("PersistentVolumeClaim")["spec"]["resources"]["requests"]["storage"]
    assert int(size.removesuffix("Gi")) << 30 > 2 * 13.4e9


def test_probes_and_network_policy_use_the_operations_port() -> None:
    port = KNOWN["operations", "port"].default
    (container,) = manifest("Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["ports"] == [{"name": "operations", "containerPort": port}]
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {each["port"] for each in probes.values()} == {"operations"}
    assert [each["path"] for each in probes.values()] == ["/livez", "/livez", "/readyz"]
    policy = manifest("NetworkPolicy")["spec"]
    assert policy["podSelector"] == manifest("Deployment")["spec"]["selector"]
    (ingress,) = policy["ingress"]
    assert ingress["ports"] == [{"protocol": "TCP", "port": port}]
    assert {each["port"] for rule in policy["egress"] for each in rule["ports"]} == {53, 443}


def test_alerts_name_existing_metrics_and_each_has_a_test() -> None:
    alerts = yaml.safe_load((DOCS / "alerts.yaml").read_text(encoding="utf-8"))
    rules = [rule for group in alerts["groups"] for rule in group["rules"]]
    dashboard = (DOCS / "grafana.json").read_text(encoding="utf-8")  # whose metrics are compared with the bot's
    for rule in rules:
        assert set(re.findall(rf"{PREFIX}_\w+", rule["expr"])) <= set(re.findall(rf"{PREFIX}_\w+", dashboard))
        assert rule["annotations"].keys() == {"summary", "description"}
    tested = (DOCS / "alerts_test.yaml").read_text(encoding="utf-8")
    for rule in rules:
        assert f"alertname: {rule['alert']}," in tested
        assert f'alertname="{rule["alert"]}"' in tested


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool: apt install prometheus")
def test_alerts_fire_for_their_faults_and_for_nothing_else() -> None:
    for verb, page in (("check", "alerts.yaml"), ("test", "alerts_test.yaml")):
        ran = subprocess.run(
            ["promtool", verb, "rules", page], cwd=DOCS, capture_output=True, text=True, timeout=120, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_release_workflow_runs_targets_and_arguments_that_exist() -> None:
    text = (ROOT / ".github" / "workflows" / "release.yaml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"run: make (\S+)$", text, re.MULTILINE)) == {"test", "release"} <= set(targets)
    assert all(jobs[name]["needs"] == "test" for name in ("packages", "images"))
    arguments = re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"^ +(\w+)=\$\{\{", text, re.MULTILINE)) - {"suffix"} <= set(arguments)
    # A job has the permissions that it names, and no others.
    assert yaml.safe_load(text)["permissions"] == {}


def test_files_copied_into_the_image_exist_and_pass_dockerignore() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert source == "." or f"!{source.split('/')[0]}" in allowed, source


def test_image_compose_and_manifest_use_the_same_port_and_user() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    port = str(KNOWN["operations", "port"].default)
    for text in (dockerfile, COMPOSE, MANIFEST):
        assert port in text
        assert "10001" in text


def test_the_ray_service_names_what_exists() -> None:
    service = yaml.safe_load((ROOT / "deploy" / "ray" / "rayservice.yaml").read_text(encoding="utf-8"))["spec"]
    [application] = yaml.safe_load(service["serveConfigV2"])["applications"]
    module, _, name = application["import_path"].partition(":")
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    assert f"def {name}(arguments: dict[str, str])" in source
    assert application["args"].keys() <= set(re.findall(r'arguments(?:\.get\(|\[)"(\w+)"', source))
    assert all(isinstance(value, str) for value in application["args"].values())
    settings = {variable(key) for key in KNOWN}
    [group] = service["rayClusterConfig"]["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    assert {each["name"] for each in container["env"]} <= settings | {"BOT_SERVER__KEYS__BOT"}
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned is not None
    assert service["rayClusterConfig"]["rayVersion"] == pinned[1]
    assert f"rayproject/ray:{pinned[1]}-" in (ROOT / "deploy" / "ray" / "Dockerfile").read_text(encoding="utf-8")
