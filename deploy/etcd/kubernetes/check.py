"""Looks at a cluster before and after an overlay is applied to it. It changes nothing. Python's standard library alone.

    python check.py before OVERLAY                 all that must be there before `kubectl apply -k OVERLAY`
    python check.py after OVERLAY [--timeout 600]  waits until all is well, or says what is not

It prints a line for each problem and what to do about it. It exits with 0 if all is well, with 1 if not, and with 2 if
`kubectl` cannot be asked. A line that begins with `warning:` is no problem: it tells of too few nodes, which an
autoscaler may add.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

Document = dict[str, Any]
Documents = list[Document]

LABEL = "pod-security.kubernetes.io/enforce"
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
INSTALL = {
    "cert-manager.io": "install cert-manager (https://cert-manager.io)",
    "monitoring.coreos.com": "install the Prometheus operator, or its CRDs alone",
}
UNITS = {"": Fraction(1), "m": Fraction(1, 1000)}
UNITS |= {unit: Fraction(1000 ** (power + 1)) for power, unit in enumerate("kMGT")}
UNITS |= {f"{unit}i": Fraction(1024 ** (power + 1)) for power, unit in enumerate("KMGT")}


class Unanswered(Exception):
    """`kubectl` failed, in its own words."""


# Input


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    """The output of a kubectl command."""
    done = subprocess.run(("kubectl", *arguments), input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unanswered(done.stderr.strip() or f"kubectl {' '.join(arguments)} failed")
    return done.stdout


def overlay_documents(overlay: str) -> Documents:
    """The documents of an overlay. `label --local` asks no server; it is here to turn YAML into JSON."""
    shown = kubectl("kustomize", overlay)
    text = kubectl("label", "--local", "-f", "-", "-o", "json", "checked=yes", stdin=shown).lstrip()
    documents, decoder = [], json.JSONDecoder()
    while text:
        document, end = decoder.raw_decode(text)
        documents.append(document)
        text = text[end:].lstrip()
    return documents


def items(kind: str, namespace: str = "") -> Documents:
    """All objects of a kind; none where the cluster does not know the kind."""
    scope = ("-n", namespace) if namespace else ("-A",)
    try:
        return list(json.loads(kubectl("get", kind, *scope, "-o", "json"))["items"])
    except Unanswered as error:
        if "the server doesn't have a resource type" in str(error):
            return []
        raise


# Decisions: from documents to lines, with no input or output


def of(documents: Documents, kind: str) -> Documents:
    return [document for document in documents if document["kind"] == kind]


def named(documents: Documents, name: str) -> Document | None:
    return next((document for document in documents if document["metadata"]["name"] == name), None)


def namespace_of(documents: Documents) -> str:
    return str(of(documents, "StatefulSet")[0]["metadata"]["namespace"])


def templates(documents: Documents) -> Iterator[Document]:
    """Every pod's template."""
    for document in documents:
        if document["kind"] in {"StatefulSet", "Deployment", "Job"}:
            yield document["spec"]["template"]
        if document["kind"] == "CronJob":
            yield document["spec"]["jobTemplate"]["spec"]["template"]


def volumes(documents: Documents) -> Iterator[Document]:
    """Every volume that a pod needs; the sources of a projected one count as volumes, unless they are optional."""
    for template in templates(documents):
        for volume in template["spec"].get("volumes", ()):
            yield volume
            for source in volume.get("projected", {}).get("sources", ()):
                if "secret" in source and not source["secret"].get("optional"):
                    yield {"secret": {"secretName": source["secret"]["name"]}}
                if "configMap" in source and not source["configMap"].get("optional"):
                    yield source


def quantity(text: str | int) -> Fraction:
    """A Kubernetes quantity, exactly: CPUs, or bytes."""
    digits = str(text).rstrip("mkKMGTi")
    return Fraction(digits) * UNITS[str(text)[len(digits) :]]


def unknown_kinds(documents: Documents, definitions: Documents) -> Iterator[str]:
    """Kinds of custom resources that the cluster does not know."""
    known = {(one["spec"]["group"], one["spec"]["names"]["kind"]) for one in definitions}
    wanted = {(document["apiVersion"].rpartition("/")[0], document["kind"]) for document in documents}
    for group, kind in sorted(wanted - known):
        if group in INSTALL:
            yield f"the cluster knows no {kind} ({group}): {INSTALL[group]}"


def unfit_namespace(name: str, namespace: Document | None) -> Iterator[str]:
    do = "kubectl apply -f kubernetes/base/namespace.yaml"
    if namespace is None:
        yield f"the namespace {name} is not there: {do}"
    elif namespace["metadata"].get("labels", {}).get(LABEL) != "restricted":
        yield f"the namespace {name} lacks the label {LABEL}=restricted: {do}"


def missing_by_hand(documents: Documents, secrets: Documents, claims: Documents, configs: Documents) -> Iterator[str]:
    """Secrets, claims and ConfigMaps that pods mount and no document makes."""
    space = namespace_of(documents)
    made = {one["spec"]["secretName"] for one in of(documents, "Certificate")}
    wanted = {volume["secret"]["secretName"] for volume in volumes(documents) if "secret" in volume}
    for name in sorted(wanted - made):
        secret = named(secrets, name)
        if secret is None:
            yield (
                f"the secret {name} is not there: kubectl -n {space} create secret generic {name} "
                '--from-literal=password="$(openssl rand -base64 24)"'
            )
        elif name == "etcd-root" and not secret.get("data", {}).get("password"):
            yield f"the secret {name} has no password: delete it and make it anew with --from-literal=password=..."
    made = {one["metadata"]["name"] for one in of(documents, "ConfigMap")}
    wanted = {volume["configMap"]["name"] for volume in volumes(documents) if "configMap" in volume}
    for name in sorted(wanted - made):
        if named(configs, name) is None:
            yield f"the ConfigMap {name} is not there: make it as README.md says"
    wanted = {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in volumes(documents)
        if "persistentVolumeClaim" in volume
    }
    for name in sorted(wanted):
        claim = named(claims, name)
        if claim is None:
            yield f"the claim {name} is not there: kubectl apply -f kubernetes/backups-claim.yaml"
        elif claim.get("status", {}).get("phase") == "Lost":
            yield f"the claim {name} has lost its volume: delete it and apply kubernetes/backups-claim.yaml"


def no_storage(documents: Documents, claims: Documents, classes: Documents) -> Iterator[str]:
    """Claims name no class, so there must be a default one as long as they are not there."""
    for etcd in of(documents, "StatefulSet"):
        for template in etcd["spec"].get("volumeClaimTemplates", ()):
            there = all(
                named(claims, f"{template['metadata']['name']}-{etcd['metadata']['name']}-{number}")
                for number in range(etcd["spec"]["replicas"])
            )
            default = any(one["metadata"].get("annotations", {}).get(DEFAULT_CLASS) == "true" for one in classes)
            if not there and not default and not template["spec"].get("storageClassName"):
                yield (
                    "no StorageClass is the default one: kubectl annotate storageclass NAME "
                    f"{DEFAULT_CLASS}=true, with a NAME of `kubectl get storageclass`"
                )


def requests(spec: Document) -> tuple[Fraction, Fraction]:
    """CPUs and bytes that a pod asks for."""
    asked = [one.get("resources", {}).get("requests", {}) for one in spec["containers"]]
    cpu = sum((quantity(one.get("cpu", 0)) for one in asked), Fraction())
    return cpu, sum((quantity(one.get("memory", 0)) for one in asked), Fraction())


def too_little_room(documents: Documents, nodes: Documents, pods: Documents) -> Iterator[str]:
    """Members that no node has room for, beside the pods that run there already."""
    [etcd] = of(documents, "StatefulSet")
    name, replicas = etcd["metadata"]["name"], etcd["spec"]["replicas"]
    spec = etcd["spec"]["template"]["spec"]
    cpu, memory = requests(spec)
    apart = "podAntiAffinity" in spec.get("affinity", {})
    room = 0
    for node in nodes:
        conditions = {one["type"]: one["status"] for one in node["status"].get("conditions", ())}
        tainted = any(one["effect"] != "PreferNoSchedule" for one in node["spec"].get("taints", ()))
        if node["spec"].get("unschedulable") or tainted or conditions.get("Ready") != "True":
            continue
        free = [quantity(node["status"]["allocatable"][what]) for what in ("cpu", "memory")]
        for pod in pods:
            ended = pod["status"].get("phase") in {"Succeeded", "Failed"}
            its_own = pod["metadata"]["namespace"] == namespace_of(documents) and any(
                owner["kind"] == "StatefulSet" and owner["name"] == name
                for owner in pod["metadata"].get("ownerReferences", ())
            )
            if pod["spec"].get("nodeName") == node["metadata"]["name"] and not ended and not its_own:
                free = [left - asked for left, asked in zip(free, requests(pod["spec"]), strict=True)]
        fit = math.floor(min(free[0] / cpu if cpu else math.inf, free[1] / memory if memory else math.inf))
        room += min(max(fit, 0), 1 if apart else replicas)
    if room < replicas:
        where = "each on a node of its own" if apart else "on any node"
        yield (
            f"{replicas} members ask for {float(cpu):g} CPU and {float(memory) / 2**30:g} GiB {where}, "
            f"and there is room for {room}: add nodes unless an autoscaler does, or lower the requests in the overlay"
        )


def another_cluster(documents: Documents, sets: Documents) -> Iterator[str]:
    """A StatefulSet of this name that cannot become the overlay's."""
    [etcd] = of(documents, "StatefulSet")
    name, space = etcd["metadata"]["name"], etcd["metadata"]["namespace"]
    found = named(sets, name)
    if found is None:
        return
    if cluster_token(found) != cluster_token(etcd):
        yield (
            f"the StatefulSet {name} in {space} belongs to another cluster ({cluster_token(found) or 'no token'}): "
            "take another namespace"
        )
        return
    changed = [what for what, read in FIXED.items() if read(found) != read(etcd)]
    if changed:
        yield (
            f"the StatefulSet {name} is there with other values of {', '.join(changed)}, which Kubernetes never "
            "changes: it was made by another overlay. Apply that one; or take a snapshot, delete it with its claims, "
            "apply this one, and restore (runbooks/restore.md)"
        )


def cluster_token(etcd: Document) -> str:
    command = etcd["spec"]["template"]["spec"]["containers"][0].get("command", ())
    found = [part.partition("=")[2] for part in command if part.startswith("--initial-cluster-token=")]
    return found[0] if found else ""


FIXED: dict[str, Callable[[Document], object]] = {
    "serviceName": lambda etcd: etcd["spec"]["serviceName"],
    "podManagementPolicy": lambda etcd: etcd["spec"].get("podManagementPolicy", "OrderedReady"),
    "selector": lambda etcd: etcd["spec"]["selector"],
    "volumeClaimTemplates": lambda etcd: [
        (one["metadata"]["name"], one["spec"]["accessModes"], one["spec"]["resources"]["requests"]["storage"])
        for one in etcd["spec"].get("volumeClaimTemplates", ())
    ],
}


def unready_certificates(documents: Documents, certificates: Documents, secrets: Documents) -> Iterator[str]:
    for wanted in of(documents, "Certificate"):
        name, secret = wanted["metadata"]["name"], wanted["spec"]["secretName"]
        found = named(certificates, name)
        if found is None:
            yield f"the certificate {name} is not there: apply the overlay"
            continue
        conditions = {one["type"]: one for one in found.get("status", {}).get("conditions", ())}
        ready = conditions.get("Ready", {})
        if ready.get("status") != "True":
            said = f"{ready.get('reason', '')}: {ready.get('message', '')}" if ready else "cert-manager has not seen it"
            do = f"kubectl describe certificate {name}; is cert-manager running?"
            yield f"the certificate {name} is not ready ({said}): {do}"
        elif named(secrets, secret) is None:
            yield f"the secret {secret} of the certificate {name} is not there: is cert-manager running?"


def unready_pods(documents: Documents, pods: Documents, sets: Documents) -> Iterator[str]:
    """Pods of members and agents that wait or crash, with the reason that Kubernetes gives."""
    labels = {template["metadata"]["labels"]["app.kubernetes.io/name"] for template in lasting(documents)}
    revisions = {one["metadata"]["name"]: one["status"].get("updateRevision") for one in sets}
    for pod in pods:
        its = pod["metadata"].get("labels", {})
        if its.get("app.kubernetes.io/name") not in labels or pod["metadata"].get("deletionTimestamp"):
            continue
        reason = why_unready(pod)
        if reason is None:
            continue
        name = pod["metadata"]["name"]
        wanted = revisions.get(its["app.kubernetes.io/name"])
        do = f"kubectl describe pod {name}, and mend the overlay"
        if wanted and its.get("controller-revision-hash") != wanted:
            do = f"it has a former template: kubectl delete pod {name} (runbooks/upgrade.md)"
        yield f"the pod {name} {reason}: {do}"


def lasting(documents: Documents) -> Iterator[Document]:
    """The templates of pods that run for ever."""
    return templates([document for document in documents if document["kind"] in {"StatefulSet", "Deployment"}])


def why_unready(pod: Document) -> str | None:
    """The reason for which a pod is not ready, or None if it is."""
    status = pod["status"]
    conditions = {one["type"]: one for one in status.get("conditions", ())}
    if conditions.get("Ready", {}).get("status") == "True":
        return None
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return f"is Pending ({scheduled.get('message', 'no reason given')})"
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        waiting = container.get("state", {}).get("waiting")
        if waiting and waiting.get("reason") not in {"PodInitializing", "ContainerCreating"}:
            return f"waits in {waiting.get('reason')} ({waiting.get('message', 'no message')})"
    return f"is {status.get('phase', 'unknown')} and not ready"


def refused_pods(documents: Documents, events: Documents, pods: Documents, jobs: Documents) -> Iterator[str]:
    """Sets and jobs of which no pod, or not every pod, could be made, with the latest reason that Kubernetes gives.

    An event lasts an hour, so it is told only while pods are missing.
    """
    made = [pod["metadata"].get("labels", {}).get("app.kubernetes.io/name") for pod in pods]
    for wanted in documents:
        kind, name = wanted["kind"], wanted["metadata"]["name"]
        if kind not in {"StatefulSet", "Deployment", "Job"} or (kind == "Job" and not is_running(named(jobs, name))):
            continue
        label = wanted["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]
        if made.count(label) >= wanted["spec"].get("replicas", 1):
            continue
        told = [one for one in events if one.get("reason") == "FailedCreate" and is_about(one, kind, name)]
        if told:
            latest = max(told, key=lambda one: str(one.get("lastTimestamp") or one.get("eventTime") or ""))
            yield (
                f"a pod of the {kind} {name} is refused ({latest.get('message', 'no message')}): mend the quota or the "
                "policy that this names; for OpenShift see kubernetes.md"
            )


def is_running(job: Document | None) -> bool:
    """True if a job is there and has not ended."""
    conditions = () if job is None else job.get("status", {}).get("conditions", ())
    ended = any(one["type"] in {"Complete", "Failed"} and one["status"] == "True" for one in conditions)
    return job is not None and not ended


def is_about(event: Document, kind: str, name: str) -> bool:
    """True if an event is about an object, or about a ReplicaSet of that Deployment."""
    its = event["involvedObject"]
    if kind == "Deployment":
        return its["kind"] == "ReplicaSet" and str(its["name"]).rpartition("-")[0] == name
    return bool(its["kind"] == kind and its["name"] == name)


def unready_sets(documents: Documents, sets: Documents, deployments: Documents) -> Iterator[str]:
    for kind, found in (("StatefulSet", sets), ("Deployment", deployments)):
        for wanted in of(documents, kind):
            name = wanted["metadata"]["name"]
            one = named(found, name)
            if one is None:
                yield f"the {kind} {name} is not there: apply the overlay"
                continue
            ready, replicas = one["status"].get("readyReplicas", 0), wanted["spec"]["replicas"]
            if ready < replicas:
                yield f"{ready} of {replicas} pods of {name} are ready"
            if one["status"].get("updatedReplicas", 0) < replicas:
                yield f"{one['status'].get('updatedReplicas', 0)} of {replicas} pods of {name} have the new template"


def unfinished_jobs(documents: Documents, jobs: Documents) -> Iterator[str]:
    for wanted in of(documents, "Job"):
        name = wanted["metadata"]["name"]
        found = named(jobs, name)
        conditions = {} if found is None else {
            one["type"]: one for one in found["status"].get("conditions", ()) if one["status"] == "True"
        }  # fmt: skip
        if found is None and "ttlSecondsAfterFinished" not in wanted["spec"]:  # else it may have ended long ago
            yield f"the job {name} is not there: apply the overlay"
        elif "Failed" in conditions:
            said = conditions["Failed"].get("message", "")
            yield f"the job {name} has failed ({said}): kubectl logs job/{name}; then delete the job and apply again"
        elif found is not None and "Complete" not in conditions:
            yield f"the job {name} is not complete yet: kubectl logs job/{name} says why"


# The two commands


def before(overlay: str) -> tuple[list[str], list[str]]:
    """The problems to mend before an overlay is applied, and the warnings."""
    documents = overlay_documents(overlay)
    space = namespace_of(documents)
    namespace = named(items("namespaces"), space)
    claims = items("persistentvolumeclaims", space)
    problems = [
        *unknown_kinds(documents, items("customresourcedefinitions")),
        *unfit_namespace(space, namespace),
        *missing_by_hand(documents, items("secrets", space), claims, items("configmaps", space)),
        *no_storage(documents, claims, items("storageclasses")),
        *another_cluster(documents, items("statefulsets", space)),
    ]
    if not problems:
        try:
            kubectl("apply", "-k", overlay, "--dry-run=server")
        except Unanswered as error:
            problems.append(f"the cluster refuses the overlay: {error}")
    room = too_little_room(documents, items("nodes"), items("pods"))
    return problems, [f"warning: {line}" for line in room]


def after(documents: Documents) -> list[str]:
    """All that is not yet as the overlay wants it."""
    space = namespace_of(documents)
    sets, pods, jobs = items("statefulsets", space), items("pods", space), items("jobs", space)
    return [
        *unready_certificates(documents, items("certificates.cert-manager.io", space), items("secrets", space)),
        *unready_sets(documents, sets, items("deployments", space)),
        *unready_pods(documents, pods, sets),
        *refused_pods(documents, items("events", space), pods, jobs),
        *unfinished_jobs(documents, jobs),
    ]


def waited(documents: Documents, timeout: float) -> list[str]:
    """`after`, again and again until all is well or the time is over."""
    end = time.monotonic() + timeout
    while (problems := after(documents)) and time.monotonic() < end:
        time.sleep(min(5.0, max(0.0, end - time.monotonic())))
    return problems


def counted(documents: Documents) -> Iterable[str]:
    """One line for each kind of thing that is as it should be."""
    yield f"certificates: {len(of(documents, 'Certificate'))} are ready, and their secrets are there"
    for kind in ("StatefulSet", "Deployment"):
        for one in of(documents, kind):
            yield f"{one['metadata']['name']}: {one['spec']['replicas']} of {one['spec']['replicas']} pods are ready"
    for job in of(documents, "Job"):
        yield f"{job['metadata']['name']}: complete"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("before", help="before `kubectl apply -k OVERLAY`").add_argument("overlay", type=Path)
    later = commands.add_parser("after", help="after it: wait until all is well")
    later.add_argument("overlay", type=Path)
    later.add_argument("--timeout", type=float, default=600, metavar="SECONDS")
    given = parser.parse_args()
    try:
        if given.command == "before":
            problems, warnings = before(str(given.overlay))
            well = [f"{given.overlay} can be applied"]
        else:
            documents = overlay_documents(str(given.overlay))
            problems, warnings, well = waited(documents, given.timeout), [], list(counted(documents))
    except Unanswered as error:
        print(f"check.py: {error}", file=sys.stderr)
        return 2
    print("\n".join([*warnings, *(problems or well)]))
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
