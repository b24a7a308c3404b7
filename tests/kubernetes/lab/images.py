"""Makes the images that the manifests name, from programs built here and from this machine's own Python.

Nothing can be pulled. Each image is a tar that `ctr images import` reads. Whether the registries have images of these
names is not proved by the lab.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.kubernetes.lab import programs
from tests.kubernetes.lab.places import DEPLOY, ROOT, cache, program

PAUSE = "docker.io/lab/pause:1"
COREDNS = "docker.io/lab/coredns:1"
_PATH = "PATH=/usr/local/bin:/usr/bin:/bin"
_TOOLS = ("sh", "cat", "cp", "date", "env", "grep", "ls", "mkdir", "mv", "rm", "sleep", "tail", "test")
_LEFT_OUT = {"test", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "site-packages", "__pycache__"}


def named(repository: str) -> str:
    """The image of a repository as the manifests name it, with its tag."""
    pattern = re.compile(rf"^\s*(?:- )?image:\s+[\"']?((?:[\w.-]+/)*{repository}:[\w.-]+)", re.MULTILINE)
    texts = [path.read_text() for path in sorted((DEPLOY / "kubernetes").rglob("*.yaml"))]
    found = {match for text in texts for match in pattern.findall(text)}
    if len(found) != 1:
        raise RuntimeError(f"the manifests name {len(found)} images of {repository}: {sorted(found)}")
    return found.pop()


def etcd_version() -> str:
    """The version of etcd that the manifests name, such as ``v3.7.1``."""
    return named("etcd").rpartition(":")[2]


def full_name(image: str) -> str:
    """The name under which containerd looks for an image."""
    first, _, rest = image.partition("/")
    if not rest:
        return f"docker.io/library/{image}"
    return image if "." in first or ":" in first else f"docker.io/{image}"


def make_all() -> list[Path]:
    """Make every image; returns the files. The agent's is always made anew, since it holds the tree's own code."""
    folder = cache() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    repository, version = named("etcd").rpartition(":")[::2]
    images = [
        _image(folder, PAUSE, [_programs(folder, "pause", "pause")], ["/usr/local/bin/pause"]),
        _image(folder, COREDNS, [_programs(folder, "coredns", "coredns")], ["/usr/local/bin/coredns"]),
    ]
    for tag in (version, programs.OLDER_ETCD):
        layer = _programs(folder, f"etcd-{tag}", *(f"{name}-{tag}" for name in ("etcd", "etcdctl", "etcdutl")))
        images.append(_image(folder, f"{repository}:{tag}", [layer]))
    python = _python(folder)
    images.append(_image(folder, named("python"), [python]))
    images.append(_image(folder, named("codomyrmex-agent"), [python, _agent(folder, python)]))
    for former in set(folder.glob("*.tar")) - set(images):
        former.unlink()
    return images


def _programs(folder: Path, name: str, *built: str) -> Path:
    """A layer of programs, under their names without a version."""
    layer = folder / "layers" / name
    if not layer.exists():
        partial = layer.with_name(f"{name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "usr/local/bin").mkdir(parents=True)
        for one in built:
            shutil.copy(program(one), partial / "usr/local/bin" / one.partition("-v")[0])
        partial.rename(layer)
    return layer


def _python(folder: Path) -> Path:
    """A layer with this machine's Python under /usr/local, and the libraries that it is linked with."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    tools = hashlib.sha256(" ".join(_TOOLS).encode()).hexdigest()[:8]  # another list makes another layer
    layer = folder / "layers" / f"{version}.{sys.version_info.micro}-{tools}"
    if layer.exists():
        return layer
    partial = layer.with_name("python.partial")
    shutil.rmtree(partial, ignore_errors=True)
    local = partial / "usr/local"
    base = Path(sys.base_prefix)
    (local / "bin").mkdir(parents=True)
    shutil.copy((base / "bin" / version).resolve(), local / "bin" / version)
    for link in ("python", "python3"):
        (local / "bin" / link).symlink_to(version)
    ignored = shutil.ignore_patterns(*_LEFT_OUT, "*.pyc", "*.a", "config-*")
    shutil.copytree(base / "lib" / version, local / "lib" / version, ignore=ignored, symlinks=True)
    for shared in (base / "lib").glob("libpython*.so*"):
        shutil.copy(shared, local / "lib" / shared.name)
    executables = [local / "bin" / version, *(_tool(partial, name) for name in _TOOLS)]
    _link(partial, [*executables, *(local / "lib" / version / "lib-dynload").glob("*.so")])
    for name, text in (
        ("passwd", "root:x:0:0::/:/bin/false\nagent:x:10002:10002::/tmp:/bin/false\n"),
        ("group", "root:x:0:\n"),
        ("nsswitch.conf", "hosts: files dns\n"),
    ):
        (partial / "etc").mkdir(exist_ok=True)
        (partial / "etc" / name).write_text(text)
    (partial / "tmp").mkdir(mode=0o1777)
    partial.rename(layer)
    return layer


def _tool(layer: Path, name: str) -> Path:
    """Copy one of this machine's tools into the layer, as Python's own image has it."""
    target = layer / "bin" / name
    target.parent.mkdir(exist_ok=True)
    shutil.copy(Path(shutil.which(name) or name).resolve(), target)
    return target


def _link(layer: Path, files: Iterable[Path]) -> None:
    """Put the shared libraries of ``files`` into the layer, at the places where the loader looks for them."""
    wanted: set[Path] = set()
    for file in files:
        listed = subprocess.run(["ldd", str(file)], capture_output=True, text=True, check=False).stdout
        wanted |= {Path(path) for path in re.findall(r"(/\S+) \(0x", listed)}
    for library in ("libnss_dns.so.2", "libnss_files.so.2", "libresolv.so.2"):  # opened by name, not linked
        wanted |= set(Path("/lib/x86_64-linux-gnu").glob(library))
    for path in wanted:
        if path.is_relative_to(layer):
            continue
        target = layer / "lib64" / path.name if path.name.startswith("ld-") else layer / "usr/local/lib" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path.resolve(), target)


def _agent(folder: Path, python: Path) -> Path:
    """A layer with the library, its command and the example agent, as `deploy/etcd/agent/Dockerfile` makes them."""
    layer = folder / "layers" / "agent"
    shutil.rmtree(layer, ignore_errors=True)
    source = layer.with_name("agent.source")  # pip would leave a build folder in the tree
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    packages = layer / "usr/local/lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    pip = (
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-warn-script-location",
    )
    subprocess.run((*pip, "--target", str(packages), f"{source}[prometheus]"), check=True)
    shutil.rmtree(source)
    command = layer / "usr/local/bin/codomyrmex"
    command.parent.mkdir(parents=True)
    text = (packages / "bin" / "codomyrmex").read_text()
    command.write_text(re.sub(r"^#!.*", "#!/usr/local/bin/python", text))
    command.chmod(0o755)
    shutil.copy(DEPLOY / "agent" / "agent.py", layer / "agent.py")
    _link(layer, packages.rglob("*.so"))
    return layer


def _image(folder: Path, name: str, layers: Sequence[Path], entrypoint: Sequence[str] = ()) -> Path:
    target = folder / f"{re.sub(r'[^a-z0-9.]+', '-', name)}.tar"
    if target.exists() and all(layer.stat().st_mtime < target.stat().st_mtime for layer in layers):
        return target
    packed = [_pack(layer) for layer in layers]
    digests = [hashlib.sha256(data).hexdigest() for data in packed]
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": "2026-01-01T00:00:00Z",
            "config": {"Env": [_PATH, "LD_LIBRARY_PATH=/usr/local/lib"], "Entrypoint": list(entrypoint) or None},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
            "history": [{"created_by": "tests/kubernetes/lab/images.py"} for _ in layers],
        }
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    names = [f"{digest}/layer.tar" for digest in digests]
    manifest = [{"Config": config_name, "RepoTags": [full_name(name)], "Layers": names}]
    partial = target.with_suffix(".partial")
    with tarfile.open(partial, "w") as archive:
        contents = [(config_name, config), *zip(names, packed, strict=True)]
        for path, data in [*contents, ("manifest.json", json.dumps(manifest).encode())]:
            info = tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    partial.rename(target)
    return target


def _pack(layer: Path) -> bytes:
    def of_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = "root"
        info.mtime = 0
        return info

    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for child in sorted(layer.iterdir()):
            archive.add(child, child.name, filter=of_root)
    return data.getvalue()
