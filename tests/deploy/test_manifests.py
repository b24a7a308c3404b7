"""The deployment's documents, rendered and read for their meaning; every flag is asked of a real etcd."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="not run: manifests (the extra `deploy` is not installed)")

from codomyrmex.concurrency import EmbeddedEtcd, EtcdSettings
from codomyrmex.concurrency.etcd.embedded import find_etcd

pytestmark = pytest.mark.deploy

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "etcd"
OVERLAYS = ("dev", "production")
MADE_BY_HAND = {"etcd-root"}
BUNDLES = {"client-ca-bundle", "peer-ca-bundle"}  # made for the replacement of an authority, by its runbook
TOOLS = Path(sys.executable).parent
Document = dict[str, Any]


@pytest.fixture(scope="module", params=OVERLAYS)
def documents(request: pytest.FixtureRequest) -> list[Document]:
    if not shutil.which("kubectl"):
        pytest.skip("not run: rendering (kubectl is not installed)")
    return rendered(request.param)


def rendered(overlay: str) -> list[Document]:
    command = ("kubectl", "kustomize", str(DEPLOY / "kubernetes/overlays" / overlay))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of(documents: list[Document], kind: str) -> list[Document]:
    return [document for document in documents if document["kind"] == kind]


def templates(documents: list[Document]) -> list[Document]:
    """Every pod's template."""
    found = [
        document["spec"]["template"]
        for kind in ("StatefulSet", "Deployment", "Job")
        for document in of(documents, kind)
    ]
    return found + [document["spec"]["jobTemplate"]["spec"]["template"] for document in of(documents, "CronJob")]


def containers(template: Document) -> list[Document]:
    spec = template["spec"]
    return [*spec.get("initContainers", ()), *spec["containers"]]


def tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(TOOLS))
    if not found:
        pytest.skip(f"not run: {name} is not installed")
    return found


def check(*command: str, stdin: str | None = None) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Form


def test_yaml_scripts_and_compose_are_in_good_form() -> None:
    off = ("line-length", "document-start", "braces", "brackets", "octal-values")
    rules = "{extends: default, rules: {" + ", ".join(f"{rule}: disable" for rule in off) + "}}"
    check(tool("yamllint"), "--strict", "-d", rules, str(DEPLOY))
    check(tool("shellcheck"), *(str(path) for path in DEPLOY.glob("*.sh")))
    check(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(DEPLOY / "compose.yaml"))


@pytest.mark.parametrize("version", ["oldest", "newest"])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_takes_every_resource(overlay: str, version: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="not run: kubernetes-validate is missing")
    tool("kubectl")
    chosen = "1.29" if version == "oldest" else kubernetes_validate.latest_version()
    for document in rendered(overlay):
        if "." not in document["apiVersion"].partition("/")[0] or "k8s.io" in document["apiVersion"]:
            kubernetes_validate.validate(document, chosen, strict=True)


def test_custom_resources_hold_what_they_may(documents: list[Document]) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="not run: custom resources (jsonschema is missing)")
    known = yaml.safe_load(Path(__file__).with_name("crds.yaml").read_text())
    custom = [document for document in documents if document["kind"] in known["kinds"]]
    ours = {document["apiVersion"].partition("/")[0] for document in documents if document not in custom}
    assert not any(group.endswith(("cert-manager.io", "coreos.com")) for group in ours) and len(custom) > 5
    for document in custom:
        schema = {**known["kinds"][document["kind"]], "definitions": known["definitions"]}
        jsonschema.validate(document["spec"], schema)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


# Meaning


def test_selectors_match_pods(documents: list[Document]) -> None:
    pods = [template["metadata"]["labels"] for template in templates(documents)]
    selectors = [service["spec"]["selector"] for service in of(documents, "Service")]
    selectors += [budget["spec"]["selector"]["matchLabels"] for budget in of(documents, "PodDisruptionBudget")]
    selectors += [monitor["spec"]["selector"]["matchLabels"] for monitor in of(documents, "PodMonitor")]
    selectors += [policy["spec"]["podSelector"].get("matchLabels", {}) for policy in of(documents, "NetworkPolicy")]
    assert selectors and all(any(item.items() <= pod.items() for pod in pods) for item in selectors)
    for kind in ("StatefulSet", "Deployment"):
        for document in of(documents, kind):
            wanted = document["spec"]["selector"]["matchLabels"]
            assert wanted.items() <= document["spec"]["template"]["metadata"]["labels"].items()


def test_every_secret_and_config_exists(documents: list[Document]) -> None:
    made = {certificate["spec"]["secretName"] for certificate in of(documents, "Certificate")} | MADE_BY_HAND
    configs = {config["metadata"]["name"] for config in of(documents, "ConfigMap")}
    claims = {claim["metadata"]["name"] for claim in of(documents, "PersistentVolumeClaim")}
    for template in templates(documents):
        for volume in template["spec"].get("volumes", ()):
            for source in volume.get("projected", {}).get("sources", ()):
                assert source.get("secret", {}).get("name", "etcd-root") in made
                assert source.get("configMap", {}).get("name") in {None, *BUNDLES, *configs}
            assert volume.get("secret", {}).get("secretName", "etcd-root") in made
            assert volume.get("configMap", {}).get("name") in {None, *configs}
            assert volume.get("persistentVolumeClaim", {}).get("claimName") in {None, *claims}
        mounted = {mount["name"] for container in containers(template) for mount in container.get("volumeMounts", ())}
        claimed = {"data"} if template["metadata"]["labels"]["app.kubernetes.io/name"] == "etcd" else set()
        assert mounted == {volume["name"] for volume in template["spec"].get("volumes", ())} | claimed
    issuers = {issuer["metadata"]["name"]: issuer for issuer in of(documents, "Issuer")}
    for certificate in of(documents, "Certificate"):
        assert certificate["spec"]["issuerRef"]["name"] in issuers
    for issuer in issuers.values():
        assert issuer["spec"].get("ca", {}).get("secretName", "client-ca") in made


def test_certificates_name_every_replica_and_service(documents: list[Document]) -> None:
    [etcd] = of(documents, "StatefulSet")
    namespace, peers = etcd["metadata"]["namespace"], etcd["spec"]["serviceName"]
    members = {f"etcd-{number}.{peers}.{namespace}.svc" for number in range(etcd["spec"]["replicas"])}
    names = {c["metadata"]["name"]: set(c["spec"].get("dnsNames", ())) for c in of(documents, "Certificate")}
    members |= {f"{name}.cluster.local" for name in members}
    assert names["etcd-peer"] == members
    services = {f"etcd.{namespace}.svc", f"etcd.{namespace}.svc.cluster.local"}
    assert names["etcd-server"] == members | services | {"localhost"}
    text = json.dumps(documents)
    named = set(re.findall(r"https://([a-z0-9.-]+\.svc(?:\.cluster\.local)?):2379", text)) | set(
        re.findall(r"=https://([a-z0-9.-]+\.svc):2380", text)
    )
    assert {name for name in named if "POD_NAME" not in name} <= names["etcd-server"]
    [cluster] = [
        item["value"] for item in containers(etcd["spec"]["template"])[0]["env"] if item["name"] == "INITIAL_CLUSTER"
    ]
    assert set(re.findall(r"https://([^:]+):2380", cluster)) == {name for name in members if name.endswith(".svc")}
    assert "etcd-bootstrap" in {document["metadata"]["name"] for document in of(documents, "ConfigMap")}
    for certificate in of(documents, "Certificate"):
        if not certificate["spec"].get("isCA"):
            assert certificate["spec"].get("commonName") != "root"


def test_a_renewed_authority_keeps_its_key(documents: list[Document]) -> None:
    authorities = [one["spec"] for one in of(documents, "Certificate") if one["spec"].get("isCA")]
    assert {authority["commonName"] for authority in authorities} == {"etcd-peer-ca", "etcd-client-ca"}
    for authority in authorities:
        assert authority["privateKey"] == {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Never"}
        assert authority["renewBefore"] == "720h"
    for one in of(documents, "Certificate"):
        assert one["spec"].get("isCA") or one["spec"]["privateKey"]["rotationPolicy"] == "Always"


def test_a_bundle_of_authorities_lies_over_the_secrets_own(documents: list[Document]) -> None:
    """Kubelet lets the later source win; without a bundle the secret's `ca.crt` stays."""
    [etcd] = of(documents, "StatefulSet")
    [roles] = [one for one in of(documents, "Job") if one["metadata"]["name"] == "etcd-roles"]
    for document, name, secret, bundle in (
        (etcd, "server-tls", "etcd-server-tls", "client-ca-bundle"),
        (etcd, "peer-tls", "etcd-peer-tls", "peer-ca-bundle"),
        (roles, "gateway-tls", "gateway-tls", "client-ca-bundle"),
    ):
        [volume] = [one for one in document["spec"]["template"]["spec"]["volumes"] if one["name"] == name]
        assert volume["projected"]["sources"] == [
            {"secret": {"name": secret}},
            {"configMap": {"name": bundle, "optional": True}},
        ]
        assert volume["projected"]["defaultMode"] == 0o440


def test_the_job_of_roles_waits_for_the_members_and_goes_when_it_is_done(documents: list[Document]) -> None:
    [job] = [one for one in of(documents, "Job") if one["metadata"]["name"] == "etcd-roles"]
    [container] = containers(job["spec"]["template"])
    [wait] = [int(item["value"]) for item in container["env"] if item["name"] == "ETCD_WAIT"]
    assert wait == 900 and job["spec"]["activeDeadlineSeconds"] > wait
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never" and job["spec"]["backoffLimit"] <= 2
    assert job["spec"]["ttlSecondsAfterFinished"] == 3600


def test_each_service_of_compose_mounts_the_certificates_it_needs() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert compose["secrets"] == {name: {"file": f"./certificates/{name}"} for name in compose["secrets"]}
    assert not any("ca.key" in name for name in compose["secrets"])
    for name, service in compose["services"].items():
        assert not any("certificates" in volume for volume in service.get("volumes", ()))
        named = set(re.findall(r"/run/secrets/([\w.-]+)", json.dumps(service)))
        assert named == set(service["secrets"]), name
        if name.startswith("agent-"):
            assert named == {"client-ca.crt", "agent.crt", "agent.key"} and "user" not in service
            assert service["cap_drop"] == ["ALL"] and service["read_only"]


def test_ports_agree(documents: list[Document]) -> None:
    [etcd] = of(documents, "StatefulSet")
    [container] = containers(etcd["spec"]["template"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    flags = " ".join(container["command"])
    for flag, name in (
        ("listen-client-urls", "client"),
        ("listen-peer-urls", "peer"),
        ("listen-metrics-urls", "metrics"),
    ):
        assert re.search(rf"--{flag}=\S+:{ports[name]}\b", flags)
    for service in of(documents, "Service"):
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == "metrics"
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    [policy] = [one for one in of(documents, "NetworkPolicy") if one["metadata"]["name"] == "etcd"]
    allowed = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
    assert allowed == set(ports.values())


def test_every_pod_is_confined(documents: list[Document]) -> None:
    for template in templates(documents):
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        for container in containers(template):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"] and container["resources"]["requests"]
            tag = container["image"].rpartition(":")[2]
            assert re.search(r"\d+\.\d+\.\d+", tag), f"no pinned tag: {container['image']}"
        if template["metadata"]["labels"]["app.kubernetes.io/name"] != "etcd":
            reaches = any("etcd" in str(container.get("env")) for container in containers(template))
            assert not reaches or template["metadata"]["labels"]["codomyrmex.io/etcd-client"] == "true"
    [namespace] = of(documents, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_what_members_need_to_live_through_an_eviction(documents: list[Document]) -> None:
    [etcd] = of(documents, "StatefulSet")
    assert etcd["spec"]["podManagementPolicy"] == "Parallel" and etcd["spec"]["replicas"] == 3
    assert etcd["spec"]["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    [budget] = of(documents, "PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1 and budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    [peers] = [service for service in of(documents, "Service") if service["spec"].get("clusterIP") == "None"]
    assert peers["spec"]["publishNotReadyAddresses"] and peers["metadata"]["name"] == etcd["spec"]["serviceName"]


def test_agents_can_drain_and_are_the_librarys_users(documents: list[Document]) -> None:
    for agents in of(documents, "Deployment"):
        spec = agents["spec"]["template"]["spec"]
        [agent] = spec["containers"]
        settings = {item["name"]: item["value"] for item in agent["env"]}
        fields = {
            name.removeprefix("CODOMYRMEX_ETCD_").lower() for name in settings if name.startswith("CODOMYRMEX_ETCD_")
        }
        assert fields <= set(EtcdSettings.model_fields)
        assert settings["CODOMYRMEX_ETCD_NAMESPACE"] == EtcdSettings().namespace
        assert spec["terminationGracePeriodSeconds"] > 30  # the longest step of agent.py waits 30 s
        assert "etcd" not in str(agent["livenessProbe"])
        assert all("emptyDir" in volume or "secret" in volume for volume in spec["volumes"])


def test_the_roles_reach_the_librarys_namespace(documents: list[Document]) -> None:
    [job] = [one for one in of(documents, "Job") if one["metadata"]["name"] == "etcd-roles"]
    [container] = containers(job["spec"]["template"])
    settings = {item["name"]: item["value"] for item in container["env"]}
    assert settings["ETCD_NAMESPACE"] == EtcdSettings().namespace


# Flags and metrics, asked of a real etcd


def flags_of_compose() -> set[str]:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    names = {name for service in compose["services"].values() for name in service.get("environment", ())}
    ours = {name for name in names if name.startswith("ETCD_") and "ETCD_DATA_DIR" in names}
    tools = {"ETCD_ENDPOINTS", "ETCD_CA_FILE", "ETCD_ROOT_PASSWORD_FILE", "ETCD_NAMESPACE"}
    return {name.removeprefix("ETCD_").lower().replace("_", "-") for name in ours - tools}


def test_a_real_etcd_takes_every_flag(request: pytest.FixtureRequest) -> None:
    binary = request.config.getoption("--etcd-binary") or str(find_etcd())
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.split()[2]
    flags = flags_of_compose()
    if shutil.which("kubectl"):
        for overlay in OVERLAYS:
            [etcd] = of(rendered(overlay), "StatefulSet")
            command = containers(etcd["spec"]["template"])[0]["command"]
            flags |= {re.sub(r"=.*", "", part).removeprefix("--") for part in command if part.startswith("--")}
    assert len(flags) > 20
    if _numbers(version) < (3, 6):
        print(f"not asked of etcd {version}, which is older than these: feature-gates, corrupt-check-time")
        flags -= {"feature-gates", "corrupt-check-time"}
    told = subprocess.run([binary, "--help"], capture_output=True, text=True, check=False)
    known = set(re.findall(r"--([a-z][a-z0-9-]+)", told.stdout + told.stderr))
    assert flags <= known, f"etcd {version} knows no {flags - known}"


def names_in_rules() -> set[str]:
    rules = yaml.safe_load((DEPLOY / "kubernetes/overlays/production/alerts.yaml").read_text())
    texts = [rule["expr"] for group in rules["spec"]["groups"] for rule in group["rules"]]
    dashboard = json.loads((DEPLOY / "kubernetes/overlays/production/dashboard.json").read_text())
    texts += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return set(re.findall(r"\b(?:etcd|codomyrmex)_[a-z_]+", " ".join(texts)))


def test_every_metric_in_alerts_and_dashboard_exists(etcd: EmbeddedEtcd) -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    from codomyrmex.concurrency.prometheus import Metrics

    with urllib.request.urlopen(f"{etcd.endpoint}/metrics", timeout=5) as answer:
        shown = answer.read().decode()
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    shown += generate_latest(registry).decode()
    metrics.close()
    known = set(re.findall(r"^# TYPE (\S+)", shown, re.MULTILINE))
    known |= {name + suffix for name in known for suffix in ("_bucket", "_count", "_sum")}
    absent_alone = {"etcd_network_peer_round_trip_time_seconds_bucket"}  # one member has no peers
    missing = {name for name in names_in_rules() if name not in known} - absent_alone
    assert not missing


def test_prometheus_takes_the_rules_and_they_ring_when_they_should(tmp_path: Path) -> None:
    promtool = tool("promtool")
    rules = yaml.safe_load((DEPLOY / "kubernetes/overlays/production/alerts.yaml").read_text())["spec"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    shutil.copyfile(Path(__file__).with_name("alerts.yaml"), tmp_path / "tests.yaml")
    check(promtool, "check", "rules", str(tmp_path / "rules.yaml"))
    check(promtool, "test", "rules", str(tmp_path / "tests.yaml"))


def test_the_runbooks_that_alerts_name_exist() -> None:
    text = (DEPLOY / "kubernetes/overlays/production/alerts.yaml").read_text() + (DEPLOY / "README.md").read_text()
    for name in re.findall(r"Runbook: ([a-z-]+)|runbooks/([a-z-]+)\.md", text):
        assert (DEPLOY / "runbooks" / f"{name[0] or name[1]}.md").exists()
