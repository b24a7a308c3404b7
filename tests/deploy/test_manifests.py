"""The deployment's documents, rendered and read for their meaning; every flag is asked of a real etcd."""

from __future__ import annotations

import base64
import ipaddress
import json
import re
import shutil
import subprocess
import sys
import tomllib
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
BY_ITSELF = (
    "base/namespace.yaml",
    "backups-claim.yaml",
    "tools/backups.yaml",
    "tools/etcdctl.yaml",
)
BUNDLES = {"client-ca-bundle", "peer-ca-bundle"}  # made for the replacement of an authority, by its runbook
TOOLS = Path(sys.executable).parent
Document = dict[str, Any]


@pytest.fixture(scope="module", params=OVERLAYS)
def documents(request: pytest.FixtureRequest) -> list[Document]:
    if not shutil.which("kubectl"):
        pytest.skip("not run: rendering (kubectl is not installed)")
    return rendered(request.param)


@pytest.fixture(scope="module")
def by_itself() -> list[Document]:
    """The documents that no overlay holds: each is applied when it is needed."""
    tool("kubectl")
    return documents_applied_by_themselves()


def documents_applied_by_themselves() -> list[Document]:
    found = [document for folder in ("restore/run", "restore/clean", "tools") for document in rendered(folder)]
    for file in BY_ITSELF:
        found += yaml.safe_load_all((DEPLOY / "kubernetes" / file).read_text())
    return found


@pytest.fixture(scope="module")
def fleet() -> list[Document]:
    """The agents' documents, which are applied beside those of etcd."""
    if not shutil.which("kubectl"):
        pytest.skip("not run: rendering (kubectl is not installed)")
    return rendered("agents")


def rendered(overlay: str) -> list[Document]:
    folder = DEPLOY / "kubernetes" / ("overlays" if overlay in OVERLAYS else "") / overlay
    command = ("kubectl", "kustomize", str(folder))
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
    found += of(documents, "Pod")
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
    check(tool("shellcheck"), *(str(path) for path in DEPLOY.rglob("*.sh")))
    check(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(DEPLOY / "compose.yaml"))


@pytest.mark.parametrize("version", ["oldest", "newest"])
@pytest.mark.parametrize("overlay", [*OVERLAYS, "agents"])
def test_kubernetes_takes_every_resource(overlay: str, version: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="not run: kubernetes-validate is missing")
    tool("kubectl")
    chosen = "1.29" if version == "oldest" else kubernetes_validate.latest_version()
    for document in rendered(overlay) + documents_applied_by_themselves():
        if "." not in document["apiVersion"].partition("/")[0] or "k8s.io" in document["apiVersion"]:
            kubernetes_validate.validate(document, chosen, strict=True)


def test_custom_resources_hold_what_they_may(documents: list[Document]) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="not run: custom resources (jsonschema is missing)")
    known = yaml.safe_load(Path(__file__).with_name("crds.yaml").read_text())
    documents = [*documents, _agents_monitor()]
    custom = [document for document in documents if document["kind"] in known["kinds"]]
    ours = {document["apiVersion"].partition("/")[0] for document in documents if document not in custom}
    assert not any(group.endswith(("cert-manager.io", "coreos.com")) for group in ours) and len(custom) > 5
    for document in custom:
        schema = {**known["kinds"][document["kind"]], "definitions": known["definitions"]}
        jsonschema.validate(document["spec"], schema)


def _agents_monitor() -> Document:
    monitor: Document = yaml.safe_load((DEPLOY / "kubernetes/agents/podmonitor.yaml").read_text())
    return monitor


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
    claims = {yaml.safe_load((DEPLOY / "kubernetes/backups-claim.yaml").read_text())["metadata"]["name"]}
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
        assert authority["renewBefore"] == "8760h", "members are restarted within that year"
        assert f"- {int(authority['duration'].removesuffix('h')) * 3600}\n" in _rule("EtcdAuthorityRenewed") + "\n"
    for one in of(documents, "Certificate"):
        assert one["spec"].get("isCA") or one["spec"]["privateKey"]["rotationPolicy"] == "Always"


def _rule(alert: str) -> str:
    """The expression of an alert."""
    rules = yaml.safe_load((DEPLOY / "kubernetes/overlays/production/alerts.yaml").read_text())
    [found] = [rule["expr"] for group in rules["spec"]["groups"] for rule in group["rules"] if rule["alert"] == alert]
    return str(found)


def test_every_user_of_the_page_that_has_a_certificate_gets_one(documents: list[Document]) -> None:
    users = re.findall(r"^\| `(\w+)` \| certificate \|", (DEPLOY / "README.md").read_text(), re.MULTILINE)
    certificates = [one["spec"] for one in of(documents, "Certificate")]
    made = {one["commonName"]: one["usages"] for one in certificates if "commonName" in one and not one.get("isCA")}
    assert users == ["agent", "observer", "operator"]
    assert all(made[user] == ["client auth"] for user in users)


def test_a_rotation_renews_every_certificate_of_the_authority(documents: list[Document]) -> None:
    text = (DEPLOY / "runbooks/ca-rotation.md").read_text()
    leaves = [one for one in of(documents, "Certificate") if not one["spec"].get("isCA")]
    its = {one["metadata"]["name"] for one in leaves if one["spec"]["issuerRef"]["name"] == "client-ca"}
    assert set(re.findall(r'which=client leaves="([^"]+)"', text)[0].split()) == its
    assert set(re.findall(r"^renew (etcd-peer .+)$", text, re.MULTILINE)[0].split()) == its | {"etcd-peer"}


def _block(name: str) -> str:
    from tests.kubernetes.pages import commands

    return commands(DEPLOY / "runbooks/ca-rotation.md")[name]


def _pasted(tmp_path: Path, kubectl: str, script: str) -> tuple[int, list[str]]:
    """The code of lines that are pasted into a shell without `set -e`, and the calls of a kubectl that is a fake."""
    fake, calls = tmp_path / "kubectl", tmp_path / "calls"
    fake.write_text(f'#!/usr/bin/env bash\necho "$*" >>{calls}\ncase "$*" in\n{kubectl}esac\n')
    (tmp_path / "sleep").write_text("#!/bin/sh\n")
    for program in (fake, tmp_path / "sleep"):
        program.chmod(0o755)
    calls.write_text("")
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, check=False)
    return done.returncode, calls.read_text().splitlines()


@pytest.mark.parametrize("second", ["", "BEGIN"])
def test_a_bundle_with_one_authority_is_not_trusted(tmp_path: Path, second: str) -> None:
    first, next_one = base64.b64encode(b"BEGIN\n").decode(), base64.b64encode(second.encode()).decode()
    fake = f"*ca-next*) echo {next_one} ;;\n*secret*) echo {first} ;;\n*apply*) cat ;;\n"
    functions = _block("renew").partition("renew()")[0]
    code, calls = _pasted(tmp_path, fake, functions + "which=client\n" + _block("trust-both"))
    assert (code == 0) is bool(second)
    assert any("rollout restart" in call for call in calls) is bool(second)
    assert any("configmap client-ca-bundle" in call and "--dry-run" in call for call in calls) is bool(second)


def test_the_new_authority_alone_is_trusted_only_when_it_has_signed_all(tmp_path: Path) -> None:
    functions = _block("renew").partition("renew()")[0] + _block("sign").partition("(set -eo pipefail\n  k get")[0]
    code, calls = _pasted(tmp_path, "", functions + "which=peer leaves=etcd-peer\n" + _block("trust-new"))
    assert code and not any("delete" in call or "rollout" in call for call in calls)


@pytest.mark.parametrize("job", ["complete", "failed"])
def test_a_new_password_stays_beside_the_older_one_until_etcd_has_it(tmp_path: Path, job: str) -> None:
    text = (DEPLOY.parents[1] / "SECURITY.md").read_text()
    [block] = re.findall(r"^    old=.*?^    \)$", text, re.MULTILINE | re.DOTALL)
    wait = "*wait*) exit 1 ;;\n" if job == "failed" else ""
    code, calls = _pasted(
        tmp_path, f"*jsonpath*) echo b2xk ;;\n*create*) echo secret ;;\n*replace*) cat ;;\n{wait}", block
    )
    written = ["--from-literal=previous=old" in call for call in calls if "create secret generic etcd-root" in call]
    assert (code, written) == ((0, [True, False]) if job == "complete" else (1, [True]))


def test_no_new_password_is_written_when_the_older_one_cannot_be_read(tmp_path: Path) -> None:
    text = (DEPLOY.parents[1] / "SECURITY.md").read_text()
    [block] = re.findall(r"^    old=.*?^    \)$", text, re.MULTILINE | re.DOTALL)
    code, calls = _pasted(tmp_path, "*jsonpath*) exit 1 ;;\n", block)
    assert code == 1 and len(calls) == 1


@pytest.mark.parametrize(
    ("conditions", "path"), [("Ready", "conditions/-"), ("Ready\nIssuing", "conditions/1"), ("Issuing", "conditions/0")]
)
def test_a_renewal_replaces_the_condition_of_an_earlier_failure(tmp_path: Path, conditions: str, path: str) -> None:
    """cert-manager's conditions are known by their type, so the API server refuses a second one of a type."""
    fake = f"*revision*) echo 3 ;;\n*'conditions[*]'*) printf '{conditions}\n' ;;\n"
    code, calls = _pasted(tmp_path, fake, _block("renew").replace("renew etcd-peer", "renew etcd-peer #"))
    assert code == 0
    [patch] = [call for call in calls if '"op":' in call]
    assert f'"path": "/status/{path}"' in patch and f'"op": "{"add" if "-" in path else "replace"}"' in patch


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


def test_every_client_trusts_the_bundle_while_an_authority_is_replaced(
    documents: list[Document], by_itself: list[Document]
) -> None:
    """Each certificate of this namespace's jobs and tools lies beside the optional bundle, which wins."""
    found = 0
    for template in [*templates(documents), *templates(by_itself)]:
        for volume in template["spec"].get("volumes", ()):
            assert "tls" not in volume.get("secret", {}).get("secretName", ""), template["metadata"]
            if volume["name"] in {"operator-tls", "gateway-tls"}:
                assert volume["projected"]["sources"] == [
                    {"secret": {"name": volume["name"]}},
                    {"configMap": {"name": "client-ca-bundle", "optional": True}},
                ]
                assert volume["projected"]["defaultMode"] == 0o440
                found += 1
    assert found >= 3


def test_the_operators_pod_takes_the_image_that_was_pushed(tmp_path: Path, fleet: list[Document]) -> None:
    ours, theirs = (
        yaml.safe_load((DEPLOY / f"kubernetes/{folder}/kustomization.yaml").read_text())["images"]
        for folder in ("tools", "agents")
    )
    assert ours == theirs and [one["name"] for one in ours] == ["codomyrmex-agent"]
    shutil.copytree(DEPLOY / "kubernetes/tools", tmp_path / "tools")
    file = tmp_path / "tools/kustomization.yaml"
    file.write_text(file.read_text().replace("newName: codomyrmex-agent", "newName: registry.example.com/agent"))
    [pod] = yaml.safe_load_all(check(tool("kubectl"), "kustomize", str(tmp_path / "tools")))
    assert pod["metadata"]["name"] == "tools"
    assert [one["image"] for one in containers(pod)] == [f"registry.example.com/agent:{ours[0]['newTag']}"]


def test_the_page_pushes_the_image_before_a_pod_of_it_is_made() -> None:
    page = (DEPLOY / "kubernetes.md").read_text()
    assert page.index("docker push") < page.index("apply -k kubernetes/tools") < page.index("kubernetes/agents\n")


def test_backups_need_no_memory_for_their_check_and_a_node_with_room(documents: list[Document]) -> None:
    for job in of(documents, "CronJob"):
        if job["metadata"]["name"] == "etcd-backup":
            template = job["spec"]["jobTemplate"]["spec"]["template"]
            assert "etcdutl" not in json.dumps(template)  # it keeps every key of the snapshot in memory
            save, keep = containers(template)
            [scratch] = [one["emptyDir"] for one in template["spec"]["volumes"] if "emptyDir" in one]
            assert save["resources"]["requests"]["ephemeral-storage"] == scratch["sizeLimit"] == "9Gi"
            assert keep["command"][2] == "rotate"


def test_a_full_database_of_dev_fits_its_claim_twice() -> None:
    tool("kubectl")
    for overlay, claim in (("dev", 1 << 30), ("production", 50 << 30)):
        [etcd] = of(rendered(overlay), "StatefulSet")
        [volume] = etcd["spec"]["volumeClaimTemplates"]
        assert volume["spec"]["resources"]["requests"]["storage"] == f"{claim >> 30}Gi"
        quotas = re.findall(
            r"--quota-backend-bytes=(\d+)", " ".join(containers(etcd["spec"]["template"])[0]["command"])
        )
        assert 2 * int(quotas[-1]) <= claim * 0.8  # the last flag counts; a defragmentation writes a second file


def test_the_pod_of_backups_ends_before_a_waiting_backup_does(by_itself: list[Document]) -> None:
    [pod] = [one for one in of(by_itself, "Pod") if one["metadata"].get("name") == "backups"]
    [job] = [one for one in of(rendered("production"), "CronJob") if one["metadata"]["name"] == "etcd-backup"]
    assert pod["spec"]["activeDeadlineSeconds"] < job["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"]


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
    # A member that starts alone has no quorum, so it is never ready; it must not be killed for that.
    assert container["startupProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    [policy] = [one for one in of(documents, "NetworkPolicy") if one["metadata"]["name"] == "etcd"]
    allowed = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
    assert allowed == set(ports.values())


def test_every_pod_is_confined(documents: list[Document]) -> None:
    for template in templates(documents):
        is_confined(template)


def is_confined(template: Document, has_token: bool = False) -> None:
    spec = template["spec"]
    assert spec["automountServiceAccountToken"] is has_token
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
        speaks = any("https://etcd" in str(container.get("env")) for container in containers(template))
        speaks = speaks and "INITIAL_CLUSTER" not in str(spec)
        assert not speaks or template["metadata"]["labels"]["codomyrmex.io/etcd-client"] == "true"


def test_what_is_applied_by_itself_fits_the_overlays(by_itself: list[Document]) -> None:
    production = rendered("production")
    [etcd] = of(production, "StatefulSet")
    namespace = etcd["metadata"]["namespace"]
    [labelled] = of(by_itself, "Namespace")
    assert labelled["metadata"]["name"] == namespace
    assert labelled["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {one["metadata"]["namespace"] for one in by_itself if one is not labelled} == {namespace}
    pods = templates([*production, *rendered("agents")])
    images = {container["image"] for template in pods for container in containers(template)}
    secrets = {one["spec"]["secretName"] for one in of(production, "Certificate")}
    configs = {one["metadata"]["name"] for one in of(by_itself, "ConfigMap")}
    [backups] = of(by_itself, "PersistentVolumeClaim")
    claims = {f"data-etcd-{number}" for number in range(etcd["spec"]["replicas"])} | {backups["metadata"]["name"]}
    for template in templates(by_itself):
        is_confined(template)
        assert {container["image"] for container in containers(template)} <= images
        for volume in template["spec"]["volumes"]:
            for source in volume.get("projected", {}).get("sources", ()):
                assert source.get("secret", {}).get("name") in {None, *secrets}
                assert source.get("configMap", {}).get("name") in {None, *BUNDLES}
            assert volume.get("configMap", {}).get("name") in {None, *configs}
            assert volume.get("persistentVolumeClaim", {}).get("claimName") in {None, *claims}
    [tools] = [pod for pod in of(by_itself, "Pod") if pod["metadata"].get("name") == "tools"]
    settings = {item["name"] for item in containers(tools)[0]["env"] if item["name"].startswith("CODOMYRMEX_ETCD_")}
    assert {name.removeprefix("CODOMYRMEX_ETCD_").lower() for name in settings} <= set(EtcdSettings.model_fields)
    known = set(
        next(one for one in of(production, "Certificate") if one["metadata"]["name"] == "etcd-server")["spec"][
            "dnsNames"
        ]
    )
    script = (DEPLOY / "kubernetes/tools/etcdctl.sh").read_text()
    assert set(re.findall(r"https://([a-z0-9.-]+\.svc):2379", json.dumps(by_itself) + script)) <= known


def test_each_member_is_restored_on_its_own_claim_by_the_same_orders(by_itself: list[Document]) -> None:
    [etcd] = of(rendered("production"), "StatefulSet")
    flags = dict(part.partition("=")[::2] for part in containers(etcd["spec"]["template"])[0]["command"])
    jobs = [job for job in of(by_itself, "Job") if job["metadata"]["name"].startswith("restore-")]
    assert len(jobs) == etcd["spec"]["replicas"]
    for number, job in enumerate(jobs):
        member = f"etcd-{number}"
        template = job["spec"]["template"]
        assert job["metadata"]["name"] == f"restore-{member}"
        assert template["metadata"]["labels"]["codomyrmex.io/member"] == member
        [claim] = [
            volume["persistentVolumeClaim"]["claimName"]
            for volume in template["spec"]["volumes"]
            if "persistentVolumeClaim" in volume
        ]
        assert claim == f"data-{member}"
        assert (
            template["spec"]["securityContext"]["runAsUser"]
            == etcd["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
        )
        assert job["spec"]["backoffLimit"] == 0  # a refusal is not repeated
        [restore] = [container for container in containers(template) if container["command"][0] == "etcdutl"]
        given = dict(part.partition("=")[::2] for part in restore["command"] if part.startswith("--"))
        assert given["--initial-advertise-peer-urls"] == flags["--initial-advertise-peer-urls"].replace(
            "POD_NAME", "MEMBER"
        )
        cluster = {item["name"]: item.get("value") for item in containers(etcd["spec"]["template"])[0]["env"]}[
            "INITIAL_CLUSTER"
        ]
        assert {item["name"]: item.get("value") for item in restore["env"]}["INITIAL_CLUSTER"] == cluster
        assert given["--bump-revision"] == "$(STAMP)0000" and "--mark-compacted" in given
        assert given["--data-dir"] != flags["--data-dir"]  # the old directory is whole until the new one is
    for number, job in enumerate(job for job in of(by_itself, "Job") if job["metadata"]["name"].startswith("clean-")):
        [term] = job["spec"]["template"]["spec"]["affinity"]["podAffinity"][
            "requiredDuringSchedulingIgnoredDuringExecution"
        ]
        assert term["labelSelector"]["matchLabels"] == {"statefulset.kubernetes.io/pod-name": f"etcd-{number}"}


def test_jobs_of_a_restore_avoid_one_anothers_nodes(by_itself: list[Document]) -> None:
    """A claim that is made anew gets its volume where the job's pod runs. One node is enough where there is one."""
    for job in of(by_itself, "Job"):
        if job["metadata"]["name"].startswith("restore-"):
            template = job["spec"]["template"]
            assert job["metadata"]["labels"]["codomyrmex.io/member"] == job["metadata"]["name"][-6:]
            [term] = template["spec"]["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
            wanted = term["podAffinityTerm"]
            assert wanted["topologyKey"] == "kubernetes.io/hostname"
            assert wanted["labelSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_lost_claim_is_made_anew_as_the_overlay_makes_it(overlay: str) -> None:
    tool("kubectl")
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="not run: kubernetes-validate is missing")
    [etcd] = of(rendered(overlay), "StatefulSet")
    [template] = etcd["spec"]["volumeClaimTemplates"]
    claims = list(yaml.safe_load_all((DEPLOY / f"kubernetes/restore/claims/{overlay}.yaml").read_text()))
    assert len(claims) == etcd["spec"]["replicas"]
    for number, claim in enumerate(claims):
        kubernetes_validate.validate(claim, kubernetes_validate.latest_version(), strict=True)
        member = f"{etcd['metadata']['name']}-{number}"
        assert claim["metadata"]["name"] == f"{template['metadata']['name']}-{member}"
        assert claim["metadata"]["namespace"] == etcd["metadata"]["namespace"]
        labels = claim["metadata"]["labels"]
        assert labels == {**etcd["spec"]["selector"]["matchLabels"], "codomyrmex.io/member": member}
        assert claim["spec"] == template["spec"]


def test_restoring_waits_for_every_member(by_itself: list[Document]) -> None:
    script = (DEPLOY / "kubernetes/restore/run.sh").read_text()
    [members] = re.findall(r"^members='(.*)'$", script, re.MULTILINE)
    jobs = [job["metadata"]["name"] for job in of(by_itself, "Job") if job["metadata"]["name"].startswith("restore-")]
    assert [f"restore-{member}" for member in members.split()] == jobs


def test_deleting_an_overlay_keeps_all_data(documents: list[Document]) -> None:
    """`kubectl delete -k` deletes what is rendered: a claim, or the namespace with every claim in it."""
    assert not of(documents, "PersistentVolumeClaim") and not of(documents, "Namespace")


def test_backups_come_from_any_member_that_is_ready(documents: list[Document]) -> None:
    for job in of(documents, "CronJob"):
        if job["metadata"]["name"] == "etcd-backup":
            save = containers(job["spec"]["jobTemplate"]["spec"]["template"])[0]
            endpoints = {item["name"]: item["value"] for item in save["env"]}["ETCDCTL_ENDPOINTS"]
            [service] = [one for one in of(documents, "Service") if "publishNotReadyAddresses" not in one["spec"]]
            name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
            assert endpoints == f"https://{name}.{namespace}.svc:2379"  # etcdctl saves from one endpoint


@pytest.mark.parametrize("endpoints", [(), ("--endpoints=https://other:2379",), ("--endpoints", "https://other:2379")])
def test_etcdctl_runs_in_a_pod_with_the_arguments_it_was_given(tmp_path: Path, endpoints: tuple[str, ...]) -> None:
    fake = tmp_path / "kubectl"
    fake.write_text(
        "#!/usr/bin/env bash\n"
        f'echo "$*" >>{tmp_path}/calls\n'
        'case "$*" in\n'
        f"  create*) cat >{tmp_path}/manifest; echo pod/etcdctl-x ;;\n"
        "  *phase*) echo Failed ;;\n"
        "  *logs*) echo said ;;\n"
        "  *exitCode*) echo 7 ;;\n"
        "esac\n"
    )
    fake.chmod(0o755)
    arguments = (*endpoints, "put", "a b", 'say "\\n" & $HOME ARGUMENTS')
    command = (str(DEPLOY / "kubernetes/tools/etcdctl.sh"), *arguments)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, "said\n"), done.stderr
    [container] = yaml.safe_load((tmp_path / "manifest").read_text())["spec"]["containers"]
    own = () if endpoints else ("--endpoints=https://etcd.codomyrmex-etcd.svc:2379",)
    assert container["args"] == [*own, *arguments]
    assert "delete pod/etcdctl-x" in (tmp_path / "calls").read_text().splitlines()[-1]


@pytest.mark.parametrize(("phase", "code"), [("Running", 0), ("Pending", 1)])
def test_etcdctl_is_awaited_as_long_as_its_pod_runs(tmp_path: Path, phase: str, code: int) -> None:
    """The member goes on with a command whose client is gone, so only a pod that does not start is given up."""
    fake = tmp_path / "kubectl"
    fake.write_text(
        "#!/usr/bin/env bash\n"
        f'echo "$*" >>{tmp_path}/calls\n'
        'case "$*" in\n'
        "  create*) cat >/dev/null; echo pod/etcdctl-x ;;\n"
        f"  *phase*) if [ $(grep -c phase {tmp_path}/calls) -gt 3 ]; then echo Succeeded; else echo {phase}; fi ;;\n"
        "  *exitCode*) echo 0 ;;\n"
        "esac\n"
    )
    fake.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "ETCDCTL_WAIT": "2"}
    command = (str(DEPLOY / "kubernetes/tools/etcdctl.sh"), "defrag")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert ("is still Pending" in done.stderr) is bool(code)


@pytest.mark.parametrize("fails", ["defrag", "get"])
def test_no_second_member_is_defragmented_while_the_first_does_not_answer(tmp_path: Path, fails: str) -> None:
    page = (DEPLOY / "runbooks/nospace.md").read_text()
    [block] = re.findall(r"<!-- run: defragment -->\n *```sh\n(.+?)```", page, re.DOTALL)
    (tmp_path / "kubernetes/tools").mkdir(parents=True)
    fake = tmp_path / "kubernetes/tools/etcdctl.sh"
    fake.write_text(f'#!/usr/bin/env bash\necho "$@"\ncase "$*" in *" {fails}"*) exit 1 ;; esac\n')
    fake.chmod(0o755)
    done = subprocess.run(("bash", "-uc", block), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "etcd-0" in done.stdout and "etcd-1" not in done.stdout and "is done" not in done.stdout


def test_a_member_that_never_started_is_found_by_its_url(tmp_path: Path) -> None:
    page = (DEPLOY / "runbooks/replace-a-member.md").read_text()
    [block] = re.findall(r"<!-- run: remove -->\n *```sh\n(.+?)```", page, re.DOTALL)
    url = "https://etcd-{0}.etcd-peers.codomyrmex-etcd.svc"
    lines = [f"a{n}, started, etcd-{n}, {url.format(n)}:2380, {url.format(n)}:2379, false" for n in (0, 2)]
    lines.insert(1, f"b1, unstarted, , {url.format(1)}:2380, , false")
    (tmp_path / "kubernetes/tools").mkdir(parents=True)
    fake = tmp_path / "kubernetes/tools/etcdctl.sh"
    listed = "\n".join(lines)
    fake.write_text(f'#!/usr/bin/env bash\n[ "$2" = list ] && echo "{listed}" || echo "$@"\n')
    fake.chmod(0o755)
    assert check("env", "-C", str(tmp_path), "bash", "-euo", "pipefail", "-c", block) == "member remove b1\n"


def _is_restricted(documents: list[Document]) -> None:
    [namespace] = of(documents, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_what_members_need_to_live_through_an_eviction(documents: list[Document]) -> None:
    [etcd] = of(documents, "StatefulSet")
    assert etcd["spec"]["podManagementPolicy"] == "Parallel" and etcd["spec"]["replicas"] == 3
    assert etcd["spec"]["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    [budget] = of(documents, "PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1 and budget["spec"]["unhealthyPodEvictionPolicy"] == "IfHealthyBudget"
    assert etcd["spec"]["minReadySeconds"] == 30  # as long as an address may be remembered
    [peers] = [service for service in of(documents, "Service") if service["spec"].get("clusterIP") == "None"]
    assert peers["spec"]["publishNotReadyAddresses"] and peers["metadata"]["name"] == etcd["spec"]["serviceName"]


def test_the_roles_reach_the_librarys_namespace(documents: list[Document]) -> None:
    [job] = [one for one in of(documents, "Job") if one["metadata"]["name"] == "etcd-roles"]
    [container] = containers(job["spec"]["template"])
    settings = {item["name"]: item["value"] for item in container["env"]}
    assert settings["ETCD_NAMESPACE"] == EtcdSettings().namespace


# The agents


def _agents(fleet: list[Document]) -> Document:
    [deployment] = of(fleet, "Deployment")
    template: Document = deployment["spec"]["template"]
    return template


def test_agents_are_the_librarys_users_and_reach_every_member(fleet: list[Document]) -> None:
    template = _agents(fleet)
    [agent] = containers(template)
    settings = {item["name"]: item["value"] for item in agent["env"]}
    fields = {name.removeprefix("CODOMYRMEX_ETCD_").lower() for name in settings if name.startswith("CODOMYRMEX_ETCD_")}
    assert fields <= set(EtcdSettings.model_fields)
    assert settings["CODOMYRMEX_ETCD_NAMESPACE"] == EtcdSettings().namespace
    documents = rendered("production")
    [etcd] = of(documents, "StatefulSet")
    members = {
        f"etcd-{number}.{etcd['spec']['serviceName']}.{etcd['metadata']['namespace']}.svc"
        for number in range(etcd["spec"]["replicas"])
    }
    endpoints = settings["CODOMYRMEX_ETCD_ENDPOINTS"].split(",")
    assert set(endpoints) == {f"https://{member}.cluster.local:2379" for member in members}
    options = {one["name"]: one["value"] for one in template["spec"]["dnsConfig"]["options"]}
    assert options == {"ndots": "1", "timeout": "1", "attempts": "3"}
    its = etcd["spec"]["template"]["spec"]["dnsConfig"]["options"]
    assert {one["name"]: one["value"] for one in its} == {"timeout": "1", "attempts": "3"}
    [allowed] = [one for one in of(documents, "NetworkPolicy") if one["metadata"]["name"] == "etcd"]
    [clients] = [rule["from"] for rule in allowed["spec"]["ingress"] if {"port": 2379} in rule["ports"]]
    assert clients[0]["namespaceSelector"] == {}
    assert clients[0]["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert not of(documents, "Deployment") and settings["AGENT_METRICS_ADDRESS"] == "0.0.0.0"


def test_agents_can_drain_and_no_probe_asks_etcd(fleet: list[Document]) -> None:
    spec = _agents(fleet)["spec"]
    [agent] = spec["containers"]
    [limit] = re.findall(r"^EDIT_LIMIT = ([\d.]+)", (DEPLOY / "agent/agent.py").read_text(), re.MULTILINE)
    assert spec["terminationGracePeriodSeconds"] >= float(limit) + 15
    probes = {name: agent[name]["exec"]["command"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert (
        "etcd" not in str(probes)
        and "/tmp/alive" in probes["startupProbe"]
        and "/tmp/ready" in probes["readinessProbe"]
    )
    assert all("emptyDir" in volume or "secret" in volume for volume in spec["volumes"])
    [deployment] = of(fleet, "Deployment")
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert deployment["spec"]["progressDeadlineSeconds"] > 60


def test_agents_stand_apart_and_leave_one_by_one(fleet: list[Document]) -> None:
    template = _agents(fleet)
    labels = template["metadata"]["labels"]
    [spread] = template["spec"]["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname" and spread["whenUnsatisfiable"] == "ScheduleAnyway"
    assert spread["labelSelector"]["matchLabels"].items() <= labels.items()
    [budget] = of(fleet, "PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1 and budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert _agents_monitor()["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_the_fleet_is_confined_and_one_pod_alone_has_a_token(fleet: list[Document]) -> None:
    _is_restricted(fleet)
    assert {
        one["metadata"]["namespace"] for one in fleet if one["kind"] not in {"Namespace", "Role", "RoleBinding"}
    } == {"codomyrmex-agents"}
    for template in templates(fleet):
        copies = template["metadata"]["labels"]["app.kubernetes.io/name"] == "copy-certificate"
        is_confined(template, has_token=copies)
        assert template["spec"].get("serviceAccountName") == ("copy-certificate" if copies else None)
    [account] = of(fleet, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False


def test_the_copy_of_the_certificate_may_do_nothing_else(fleet: list[Document]) -> None:
    [volume] = [one["secret"] for one in _agents(fleet)["spec"]["volumes"] if "secret" in one]
    [certificate] = [
        one for one in of(rendered("production"), "Certificate") if one["spec"].get("commonName") == "agent"
    ]
    name = certificate["spec"]["secretName"]
    assert volume["secretName"] == name
    roles = {one["metadata"]["namespace"]: one for one in of(fleet, "Role")}
    may = {
        namespace: {
            (verb, kind, target)
            for rule in role["rules"]
            for verb in rule["verbs"]
            for kind in rule["resources"]
            for target in rule.get("resourceNames", ["*"])
        }
        for namespace, role in roles.items()
    }
    assert may["codomyrmex-etcd"] == {("get", "secrets", name), ("get", "configmaps", "client-ca-bundle")}
    assert may["codomyrmex-agents"] == {
        ("create", "secrets", "*"),
        ("get", "secrets", name),
        ("update", "secrets", name),
    }
    for binding in of(fleet, "RoleBinding"):
        assert binding["roleRef"]["name"] == roles[binding["metadata"]["namespace"]]["metadata"]["name"]
        [subject] = binding["subjects"]
        assert (subject["name"], subject["namespace"]) == ("copy-certificate", "codomyrmex-agents")
    [config] = of(fleet, "ConfigMap")
    assert list(config["data"]) == ["copy_certificate.py"]


def test_the_fleet_reaches_etcds_client_port_dns_and_apis(fleet: list[Document]) -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in of(fleet, "NetworkPolicy")}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    agents = policies["agents"]
    assert agents["podSelector"]["matchLabels"].items() <= _agents(fleet)["metadata"]["labels"].items()
    assert _ports(agents["egress"]) == {53, 443, 2379, 5353} and _ports(agents["ingress"]) == {9464}
    [to_etcd] = [rule["to"] for rule in agents["egress"] if {"port": 2379} in rule["ports"]]
    assert to_etcd == [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "codomyrmex-etcd"}},
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "etcd"}},
        }
    ]
    copy = policies["copy-certificate"]
    assert "ingress" not in copy and _ports(copy["egress"]) == {443, 6443, 8443, 16443}
    assert copy["egress"][0]["to"] == [{"ipBlock": {"cidr": cidr}} for cidr in ("0.0.0.0/0", "::/0")]
    for policy in (*policies.values(), *(one["spec"] for one in of(rendered("production"), "NetworkPolicy"))):
        assert policy["policyTypes"] == ["Ingress", "Egress"]


def test_clients_beside_etcd_reach_etcd_and_dns_alone(documents: list[Document], fleet: list[Document]) -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in of(documents, "NetworkPolicy")}
    clients = policies["etcd-clients"]
    assert "ingress" not in clients and _ports(clients["egress"]) == {53, 2379, 5353}
    agents = next(one["spec"] for one in of(fleet, "NetworkPolicy") if one["metadata"]["name"] == "agents")
    dns = [_dns(policy) for policy in (policies["etcd"], clients, agents)]
    assert dns[0] == dns[1] == dns[2]
    [link_local] = [ipaddress.ip_network(one["ipBlock"]["cidr"]) for one in dns[0][0]["to"] if "ipBlock" in one]
    assert _ports(dns[0][:1]) == {53} and "openshift-dns" in str(dns[0][1]["to"])
    for cache in ("169.254.20.10", "169.254.25.10", "169.254.169.254", "169.254.10.10"):  # kubespray, GKE, AKS
        assert ipaddress.ip_address(cache) in link_local


def _ports(rules: list[Document]) -> set[int]:
    return {port["port"] for rule in rules for port in rule["ports"]}


def _dns(policy: Document) -> list[Document]:
    return [rule for rule in policy["egress"] if {port["port"] for port in rule["ports"]} & {53, 5353}]


def test_the_agents_image_is_built_from_this_tree(fleet: list[Document]) -> None:
    root = DEPLOY.parents[1]
    [image] = [container["image"] for container in containers(_agents(fleet))]
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    assert image == f"codomyrmex-agent:{version}"
    dockerfile = (DEPLOY / "agent/Dockerfile").read_text()
    assert f"docker build -f deploy/etcd/agent/Dockerfile -t {image} .\n" in dockerfile
    anchor = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["x-agent"]
    assert anchor["image"] == image
    assert (DEPLOY / anchor["build"]["context"]).resolve() == root
    assert (root / anchor["build"]["dockerfile"]).samefile(DEPLOY / "agent/Dockerfile")
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE)
    needed = {name for line in copied for name in line.split()}
    kept = set(re.findall(r"^!(.+)$", (root / ".dockerignore").read_text(), re.MULTILINE))
    assert needed == kept and all((root / name).exists() for name in needed)
    assert re.search(r"^USER \d+:\d+$", dockerfile, re.MULTILINE) and "--no-cache-dir" in dockerfile


def test_one_python_image_is_used_everywhere(fleet: list[Document]) -> None:
    texts = [path.read_text() for path in (*DEPLOY.rglob("*.yaml"), DEPLOY / "agent/Dockerfile")]
    named = {image for text in texts for image in re.findall(r"\bpython:\d[\w.-]*", text)}
    assert len(named) == 1 and re.fullmatch(r"python:3\.\d+\.\d+-slim", named.pop())


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


def expressions() -> list[str]:
    """The expressions of all alerts and panels."""
    rules = yaml.safe_load((DEPLOY / "kubernetes/overlays/production/alerts.yaml").read_text())
    texts = [rule["expr"] for group in rules["spec"]["groups"] for rule in group["rules"]]
    dashboard = json.loads((DEPLOY / "kubernetes/overlays/production/dashboard.json").read_text())
    texts += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return texts


def names_in_rules() -> set[str]:
    return set(re.findall(r"\b(?:etcd|codomyrmex)_[a-z_]+", " ".join(expressions())))


def test_no_rule_or_panel_means_another_etcd() -> None:
    """The control plane has an etcd too, and other namespaces have jobs."""
    found = []
    for text in expressions():
        found += re.findall(r"\b((?:etcd|kube|certmanager)_[a-z_]+|up)\b(\{[^}]*\})?", text)
    assert len(found) > 20
    assert [name for name, selector in found if not re.search(r'namespace=~?"codomyrmex-', selector)] == []


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


def test_the_page_of_metrics_names_every_alert() -> None:
    rules = yaml.safe_load((DEPLOY / "kubernetes/overlays/production/alerts.yaml").read_text())
    alerts = {rule["alert"] for group in rules["spec"]["groups"] for rule in group["rules"]}
    page = (DEPLOY.parents[1] / "docs/operations/metrics.md").read_text().partition("## Alerts")[2]
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == alerts


def test_the_runbooks_that_alerts_name_exist() -> None:
    text = (DEPLOY / "kubernetes/overlays/production/alerts.yaml").read_text() + (DEPLOY / "README.md").read_text()
    for name in re.findall(r"Runbook: ([a-z-]+)|runbooks/([a-z-]+)\.md", text):
        assert (DEPLOY / "runbooks" / f"{name[0] or name[1]}.md").exists()


def test_runbooks_say_where_their_commands_run_and_name_files_that_exist() -> None:
    for name in ("restore", "replace-a-member", "nospace", "upgrade"):
        text = (DEPLOY / "runbooks" / f"{name}.md").read_text()
        assert "**Where.** In the folder `deploy/etcd`" in text
        for path in re.findall(r"(?<!tests/)\bkubernetes/[a-z][\w./-]*\w", text):
            assert (DEPLOY / path).exists(), f"{name}: {path}"
