"""Builds the programs of a Kubernetes cluster from Go modules into the cache folder. A program stays once built."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.kubernetes.lab.places import cache

KUBERNETES = "1.34.4"
CERT_MANAGER = "github.com/cert-manager/cert-manager@v1.21.2"
PROMETHEUS = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
COREDNS = "github.com/coredns/coredns@v1.14.7"
KUBE_ROUTER = "github.com/cloudnativelabs/kube-router/v2@v2.1.0"
OLDER_ETCD = "v3.6.16"  # the version that an upgrade starts from

API = ("kube-apiserver", "kubectl")
WHOLE = (*API, "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
_GO = Path(__file__).with_name("go")


def environment() -> dict[str, str]:
    """Go's environment: its caches lie in the cache folder too, so that removing that folder removes everything."""
    ours = {
        "GOCACHE": str(cache() / "gocache"),
        "GOMODCACHE": str(cache() / "gomod"),
        "GOFLAGS": "-buildvcs=false -modcacherw",
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
    }
    return {**os.environ, **ours}


def _go(*arguments: str, folder: Path) -> str:
    command = ("nice", "go", *arguments)
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} in {folder}: {done.stderr[-2000:]}")
    return done.stdout


def _build(program: str, package: str, folder: Path, flags: str = "") -> None:
    print(f"builds {program}", file=sys.stderr, flush=True)
    target = cache() / "bin" / program
    partial = target.with_suffix(".partial")  # an interrupted build leaves no half program
    _go("build", "-trimpath", "-ldflags", f"-s -w {flags}", "-o", str(partial), package, folder=folder)
    partial.rename(target)


def _is_there(*programs: str) -> bool:
    return all((cache() / "bin" / program).exists() for program in programs)


def _module(name: str) -> Path:
    folder = cache() / "modules" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _one(program: str, module: str, package: str) -> None:
    """A program whose module builds as it is."""
    if _is_there(program):
        return
    folder = _module(program)
    if not (folder / "go.mod").exists():
        _go("mod", "init", "built", folder=folder)
    _go("get", f"{package}@{module.partition('@')[2]}", folder=folder)
    _build(program, package, folder)


def _etcd(version: str, programs: Iterable[str]) -> None:
    for program in programs:
        package = f"go.etcd.io/etcd/{'server' if program == 'etcd' else program}/v3"
        _one(f"{program}-{version}", f"{package}@{version}", package)


def _kubernetes(programs: Iterable[str]) -> None:
    wanted = [program for program in programs if not _is_there(program)]
    if not wanted:
        return
    folder = _module("kubernetes")
    download = json.loads(_go("mod", "download", "-json", f"k8s.io/kubernetes@v{KUBERNETES}", folder=folder))
    replaced = _staging_modules(Path(download["GoMod"]).read_text())
    minor = KUBERNETES.partition(".")[2]
    lines = "\n".join(f"\t{module} => {module} v0.{minor}" for module in replaced)
    (folder / "go.mod").write_text(
        f"module built\n\ngo 1.26\n\nrequire k8s.io/kubernetes v{KUBERNETES}\n\nreplace (\n{lines}\n)\n"
    )
    imports = "\n".join(f'\t_ "k8s.io/kubernetes/cmd/{program}"' for program in WHOLE)
    (folder / "tools.go").write_text(f"//go:build tools\n\npackage tools\n\nimport (\n{imports}\n)\n")
    _go("mod", "tidy", "-e", folder=folder)  # -e: a test of a dependency may lack something; the programs do not
    version = "k8s.io/component-base/version"
    major, minor = KUBERNETES.split(".")[:2]
    flags = f"-X {version}.gitVersion=v{KUBERNETES} -X {version}.gitMajor={major} -X {version}.gitMinor={minor}"
    for program in wanted:
        _build(program, f"k8s.io/kubernetes/cmd/{program}", folder, flags)


def _staging_modules(go_mod: str) -> list[str]:
    """The modules that Kubernetes' own go.mod replaces by folders, which the module's archive lacks.

    It requires them at exactly v0.0.0; others of the same organization have versions of their own.
    """
    required = re.findall(r"^\s+(k8s\.io/\S+) v0\.0\.0(?: //.*)?$", go_mod, re.MULTILINE)
    replaced = re.findall(r"^\s+(k8s\.io/\S+) => \./staging", go_mod, re.MULTILINE)
    return sorted({*required, *replaced})


def crds() -> list[Path]:
    """The files of cert-manager's CRDs, and of the two of the Prometheus operator that the overlays use."""
    modules = cache() / "gomod"
    for module in (CERT_MANAGER, PROMETHEUS):
        if not (modules / module).exists():
            _go("mod", "download", module, folder=_module("crds"))
    operator = modules / PROMETHEUS / "example" / "prometheus-operator-crd"
    kinds = ("podmonitors", "prometheusrules")
    return [
        *sorted((modules / CERT_MANAGER / "deploy" / "crds").glob("*.yaml")),
        *(operator / f"monitoring.coreos.com_{kind}.yaml" for kind in kinds),
    ]


def _certificates() -> None:
    """cert-manager's own controllers of what the deployment uses, as one program."""
    if _is_there("cert-manager"):
        return
    folder = _module("certificates")
    shutil.copyfile(_GO / "certificates" / "main.go", folder / "main.go")
    name, _, version = CERT_MANAGER.partition("@")
    (folder / "go.mod").write_text(f"module built\n\ngo 1.26\n\nrequire {name} {version}\n")
    _go("mod", "tidy", "-e", folder=folder)
    _build("cert-manager", ".", folder)


def build_api(etcd: str) -> None:
    """The API server and all that it needs; ``etcd`` is the version that keeps its data."""
    (cache() / "bin").mkdir(parents=True, exist_ok=True)
    _etcd(etcd, ("etcd",))
    _kubernetes(API)
    crds()


def build_all(etcd: str) -> None:
    """Every program of the cluster. ``etcd`` is the version that the manifests name."""
    build_api(etcd)
    _etcd(etcd, ("etcdctl", "etcdutl"))
    _etcd(OLDER_ETCD, ("etcd", "etcdctl", "etcdutl"))
    _kubernetes(WHOLE)
    _one("coredns", COREDNS, COREDNS.partition("@")[0])
    router = KUBE_ROUTER.partition("@")[0]
    _one("kube-router", KUBE_ROUTER, f"{router}/cmd/kube-router")
    _certificates()
    if not _is_there("pause"):
        folder = _module("pause")
        shutil.copyfile(_GO / "pause" / "main.go", folder / "main.go")
        (folder / "go.mod").write_text("module built\n\ngo 1.26\n")
        _build("pause", ".", folder)
