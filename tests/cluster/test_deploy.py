"""The deployment files against the schemas and tools that will read them.

Ray's own schema and Kubernetes' are installed with the tests. KubeRay's and Compose's are on no package index: with
CONDENSE_SCHEMAS=FOLDER that holds ray.io_rayclusters.yaml, ray.io_rayjobs.yaml (ray-project/kuberay, helm-chart/
kuberay-operator/crds) and compose-spec.json (compose-spec/compose-spec, schema), they are asked too.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.builders.deployment import DEPLOY, load, made_secrets
from tests.conftest import ROOT

KUBERNETES = "1.36"
SCHEMAS = Path(os.environ.get("CONDENSE_SCHEMAS", "/nonexistent"))
needs_schemas = pytest.mark.skipif(not SCHEMAS.is_dir(), reason="CONDENSE_SCHEMAS names no folder")


def kuberay() -> dict[str, Any]:
    """The RayCluster and the RayJob."""
    documents = [
        document
        for name in ("kuberay-cluster.yaml", "kuberay-job.yaml")
        for document in yaml.safe_load_all((DEPLOY / name).read_text())
    ]
    return {document["kind"]: document for document in documents}


def ray_clusters() -> list[dict[str, Any]]:
    found = kuberay()
    return [found["RayCluster"]["spec"], found["RayJob"]["spec"]["rayClusterSpec"]]


def pods() -> list[Any]:
    groups = [group for spec in ray_clusters() for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    return [group["template"]["spec"] for group in groups]


def nested(values: Any) -> Iterator[Any]:
    yield values
    for inner in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        yield from nested(inner)


def checked_by_ray(config: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_the_cluster_for_ray_up_passes_rays_own_checks_and_grows_from_zero() -> None:
    prepared = checked_by_ray(load("ray-cluster.yaml"))
    types = prepared["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0
    assert types["gpu"]["min_workers"] == 0 < types["gpu"]["max_workers"]
    assert types["gpu"]["resources"]["GPU"] == 1


def test_rays_checks_refuse_a_misspelt_key() -> None:
    with pytest.raises(jsonschema.ValidationError):
        checked_by_ray({**load("ray-cluster.yaml"), "max_wrokers": 3})


def test_no_node_starts_without_a_token_and_the_dashboard_stays_on_loopback() -> None:
    config = load("ray-cluster.yaml")
    commands = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    starts = [command for command in commands if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert any(path.endswith(".ray/auth_token") for path in config["file_mounts"])


@pytest.mark.parametrize("spec", ray_clusters(), ids=["RayCluster", "RayJob"])
def test_rays_autoscaler_understands_what_is_given_to_kuberay(spec: dict[str, Any]) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.util import validate_config

    resource = {"metadata": {"name": "condense", "namespace": "default"}, "spec": spec}
    derived = _derive_autoscaling_config_from_ray_cr(resource)
    validate_config(derived)
    types = derived["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["gpu"]["min_workers"] == 0
    assert types["gpu"]["resources"] | {"memory": 0} == {"CPU": 8, "GPU": 1, "memory": 0}
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"


@pytest.mark.parametrize("spec", pods())
def test_every_pod_is_one_that_kubernetes_takes_and_none_runs_as_root(spec: dict[str, Any]) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "condense"}, "spec": spec}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    assert spec["securityContext"]["runAsNonRoot"]
    assert not any(container["securityContext"]["allowPrivilegeEscalation"] for container in spec["containers"])
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**pod, "spec": {**spec, "contaners": []}}, KUBERNETES, strict=True)


def test_the_claim_for_shared_storage_is_one_that_kubernetes_takes() -> None:
    claim, _ = yaml.safe_load_all((DEPLOY / "kuberay-cluster.yaml").read_text())
    kubernetes_validate.validate(claim, KUBERNETES, strict=True)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


@needs_schemas
@pytest.mark.parametrize(("kind", "file"), [("RayCluster", "ray.io_rayclusters"), ("RayJob", "ray.io_rayjobs")])
def test_kuberays_schema_takes_every_key(kind: str, file: str) -> None:
    definition = yaml.load((SCHEMAS / f"{file}.yaml").read_text(), Loader=yaml.CSafeLoader)
    (version,) = (v for v in definition["spec"]["versions"] if v["name"] == "v1")
    schema = version["schema"]["openAPIV3Schema"]
    for part in nested(schema):
        if isinstance(part, dict) and part.get("x-kubernetes-int-or-string"):
            part["type"] = ["integer", "string"]
        if isinstance(part, dict) and isinstance(part.get("properties"), dict) and part.get("type") == "object":
            part.setdefault("additionalProperties", False)
    schema["properties"]["metadata"] = {"type": "object"}
    resource = kuberay()[kind]
    jsonschema.validate(resource, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**resource, "spec": {**resource["spec"], "rayVersoin": "2"}}, schema)


@needs_schemas
@pytest.mark.parametrize("name", ["compose.yaml", "compose-gpu.yaml"])
def test_composes_schema_takes_every_key(name: str) -> None:
    schema = json.loads((SCHEMAS / "compose-spec.json").read_text())
    config = load(name)
    jsonschema.validate(config, schema)
    config["services"]["worker"]["imgae"] = "condense"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config, schema)


def has_compose() -> bool:
    docker = shutil.which("docker")
    return bool(docker) and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0


@pytest.mark.skipif(not has_compose(), reason="no docker compose on this machine")
def test_docker_compose_resolves_both_files() -> None:
    files = [part for name in ("compose.yaml", "compose-gpu.yaml") for part in ("--file", str(DEPLOY / name))]
    environment = {**os.environ, **made_secrets()}
    subprocess.run(["docker", "compose", *files, "config", "--quiet"], env=environment, check=True)


def test_the_services_refer_only_to_what_the_compose_file_has() -> None:
    config = load("compose.yaml")
    for service in config["services"].values():
        assert set(service.get("depends_on", ())) <= config["services"].keys()
        assert set(service["networks"]) <= config["networks"].keys()
        assert {config["source"] for config in service.get("configs", ())} <= config["configs"].keys()
        assert {volume.partition(":")[0] for volume in service.get("volumes", ())} <= config["volumes"].keys()


def test_only_loopback_is_published_and_only_mlflow_reaches_the_database() -> None:
    services = load("compose.yaml")["services"]
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published.keys() == {"mlflow", "head"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert {name for name, service in services.items() if "records" in service["networks"]} == {
        "postgres",
        "objects",
        "bucket",
        "mlflow",
    }


def test_no_secret_has_a_default_and_the_script_makes_them_all() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    asked = set(re.findall(r"\$\{(\w+)(?::\?[^}]*)?\}", text))
    assert asked == made_secrets().keys()
    assert all(len(secret) >= 32 for secret in made_secrets().values())
    assert not re.search(r"\$\{\w*(PASSWORD|TOKEN|KEY)\w*:-", text)


def test_mlflow_asks_for_a_password_and_answers_to_its_own_names_alone() -> None:
    service = load("compose.yaml")["services"]["mlflow"]
    assert "--app-name=basic-auth" in service["command"]
    (hosts,) = (part for part in service["command"] if part.startswith("--allowed-hosts="))
    assert "*" not in hosts
    assert service["environment"]["MLFLOW_AUTH_ADMIN_PASSWORD"] == "${MLFLOW_ADMIN_PASSWORD}"


def test_every_part_of_the_service_says_where_its_health_is_asked() -> None:
    services = load("compose.yaml")["services"]
    for name in ("mlflow", "head", "worker"):
        assert services[name]["environment"]["HEALTH_URL"].startswith("http://127.0.0.1:")
    assert "$HEALTH_URL" in (ROOT / "Dockerfile").read_text()
    assert "healthcheck" in services["postgres"]


def test_the_image_has_two_stages_a_revision_and_a_user_who_is_not_root() -> None:
    text = (ROOT / "Dockerfile").read_text()
    instructions = [line.split(maxsplit=1) for line in text.replace("\\\n", " ").splitlines() if line[:1].isupper()]
    assert [words[0] for words in instructions].count("FROM") == 2
    assert [words[1] for words in instructions if words[0] == "USER"] == ["condense"]
    assert "org.opencontainers.image.revision" in text
    assert "ENV CONDENSE_REVISION=${REVISION}" in text
