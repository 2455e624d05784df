# SPDX-License-Identifier: Apache-2.0
"""Install a wheel as a user would, without compiler and toolkit, and see that it works and tells the truth.

    python tools/wheel/check_wheel.py [--wheel FILE] [--torch torch==2.13.0] [--second-torch NAME] [--sdist]

Each environment is new and has a PATH of its own scripts and of coreutils. The tests run from a copy outside
the repository, so that they import what is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COREUTILS = (
    "sh",
    "env",
    "ls",
    "cat",
    "cp",
    "mv",
    "rm",
    "mkdir",
    "uname",
    "head",
    "tail",
    "sed",
    "grep",
    "dirname",
)
BUILD_TOOLS = ("cc", "c++", "gcc", "g++", "as", "ld", "ar", "strip")
TEST_PACKAGES = ("pytest>=8", "pytest-timeout", "pytest-xdist", "hypothesis")
# What cannot run beside an installed wheel, and why. Other tests skip themselves for a reason that they give.
LEFT_OUT = {
    "test_ops_compile.py": "torch.compile needs a C++ compiler",
    "test_packaging.py": "builds from the sources",
    "test_cuda_shim": "compiles CUDA sources for the CPU",
    "test_triton_": "Triton and its tools are not part of this check",
    "test_examples.py": "the examples are part of the repository",
    "test_gpu_": "the GPU report is part of the repository",
    "test_baselines.py": "the baselines are part of the repository",
    "test_cuda_resources.py": "reads ptxas's report, with binutils",
    "test_measured.py": "what was measured is part of the repository",
    "test_quality.py": "the experiments are part of the repository",
    "test_readme.py": "reads the README",
}
LEFT_OUT_TESTS = {
    "core/test_import.py::test_version_is_the_packaged_one": "reads the sources",
}
OPS = """
import torch, softdiff_kernels as sk
x = torch.linspace(-1, 1, 2 * 3 * 64 * 48).reshape(2, 3, 64, 48)
assert sk.backends()["native"].usable, sk.backends()["native"]
for op in (sk.dct2, lambda x: sk.blur(x, 2.0), lambda x: sk.corrupt(x, 2.0, 0.1, key=sk.NoiseKey(1))):
    with sk.use_backend("reference"):
        expected = op(x)
    error = float((op(x) - expected).norm() / expected.norm())
    assert error < 1e-6, error
print(torch.__version__, sk.__file__)
"""


def done(what: str) -> None:
    print(f"ok: {what}", flush=True)


class Environment:
    """A new virtual environment, and commands in it that see no compiler."""

    def __init__(self, folder: Path, tools: tuple[str, ...] = ()) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        self.python = folder / "venv" / "bin" / "python"
        bare = folder / "bin"
        bare.mkdir()
        for name in (*COREUTILS, *tools):
            if found := shutil.which(name):
                (bare / name).symlink_to(found)
        # Switches and search paths of whoever runs this must not reach what is tested.
        kept = {
            k: v
            for k, v in os.environ.items()
            if not re.match("SOFTDIFF_|PYTHON|CUDA_|CXX|CC$|LDFL|CMAKE", k)
        }
        self.environ = {**kept, "PATH": f"{folder / 'venv' / 'bin'}:{bare}", "HOME": str(folder)}

    def run(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """A command of the environment, in its folder; the output in one."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**self.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def check(self, *command: str, **environ: str) -> str:
        ran = self.run(*command, **environ)
        if ran.returncode:
            sys.exit(f"{' '.join(command)}\n{ran.stdout}\nexit code {ran.returncode}")
        return ran.stdout

    def pip(self, *arguments: str, **environ: str) -> str:
        return self.check(str(self.python), "-m", "pip", *arguments, **environ)

    def installed(self) -> set[str]:
        """Every file and folder in site-packages, without byte code that came with running pip itself."""
        (site,) = (self.folder / "venv" / "lib").glob("python*/site-packages")
        paths = (path.relative_to(site).as_posix() for path in site.rglob("*"))
        return {path for path in paths if not path.startswith(("pip/", "pip-"))}


@contextmanager
def environment(tools: tuple[str, ...] = ()) -> Iterator[Environment]:
    with tempfile.TemporaryDirectory(prefix="softdiff-wheel-") as folder:
        yield Environment(Path(folder), tools)


def record(wheel: Path) -> dict[str, object]:
    with zipfile.ZipFile(wheel) as archive:
        return json.loads(archive.read("softdiff_kernels/_build.json"))


def check_install(wheel: Path, torch: str, tests: list[str]) -> None:
    with environment() as env:
        if any(shutil.which(tool, path=env.environ["PATH"]) for tool in (*BUILD_TOOLS, "nvcc", "clang++")):
            sys.exit("the clean environment has a compiler on its PATH")
        env.pip("install", "--quiet", torch, "numpy", *TEST_PACKAGES)
        before = env.installed()
        env.pip("install", "--quiet", f"{wheel}[train,plot]")
        env.check(str(env.python), "-c", OPS)
        done(f"{wheel.name} installs, imports and computes without a compiler, beside {torch}")
        check_doctor(env, wheel)
        check_tests(env, tests)
        env.pip("uninstall", "--quiet", "--yes", "softdiff_kernels")
        if left := {name for name in env.installed() - before if "softdiff" in name.lower()}:
            sys.exit(f"uninstalling leaves {sorted(left)}")
        done("uninstalling leaves nothing of it in site-packages")
        check_other_python(env, wheel)


def check_doctor(env: Environment, wheel: Path) -> None:
    """Every line against what the wheel's file and its build record say."""
    said = env.check(str(env.python.with_name("softdiff")), "doctor")
    lines = {line[:20].strip(): line[20:].strip() for line in said.splitlines() if len(line) > 20}
    built = record(wheel)
    version = wheel.name.split("-")[1]
    with zipfile.ZipFile(wheel) as archive:
        modules = sorted(Path(name).name for name in archive.namelist() if name.endswith(".so"))
    cuda = "absent: installed without the CUDA kernels"
    if built["cuda"]:
        archs = ", ".join(f"sm_{arch}" for arch in built["cuda_archs"])  # type: ignore[attr-defined]
        cuda = f"{archs}, PTX of sm_{built['cuda_ptx']}; CUDA {built['nvcc']} linked in; "
    truths = {
        "softdiff_kernels": version,
        "compiler": "none (looked for",
        "compiled modules": ", ".join(modules),
        "CUDA module": cuda,
    }
    for name, begins in truths.items():
        if not lines.get(name, "").startswith(begins):
            sys.exit(f"softdiff doctor should say {begins!r} of {name}:\n{said}")
    if not re.search(r"^  native +yes +fused CPU kernels", said, flags=re.MULTILINE):
        sys.exit(f"softdiff doctor should call the native backend usable:\n{said}")
    done("softdiff doctor tells what the wheel's record and files tell")


def check_tests(env: Environment, tests: list[str]) -> None:
    shutil.copytree(ROOT / "tests", env.folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "pyproject.toml", env.folder)  # pytest's settings
    skipped = [f"--ignore-glob=tests/*/{name}*" for name in LEFT_OUT]
    skipped += [f"--deselect=tests/{name}" for name in LEFT_OUT_TESTS]
    pytest = (str(env.python), "-m", "pytest", "-q", "-n", "2", "-m", "not gpu", "-p", "no:cacheprovider")
    said = env.check(*pytest, *skipped, *tests)
    print("\n".join(line for line in said.splitlines() if line.startswith(("SKIPPED", "XFAIL"))))
    for name, reason in {**LEFT_OUT, **LEFT_OUT_TESTS}.items():
        print(f"left out: {name}: {reason}")
    done(f"tests: {said.strip().splitlines()[-1].strip('= ')}")


def check_other_python(env: Environment, wheel: Path) -> None:
    """Rule: another Python's wheel is refused by pip, in pip's words, before anything is installed."""
    other = env.folder / re.sub(r"-cp3\d+-cp3\d+-", "-cp39-cp39-", wheel.name)
    shutil.copy2(wheel, other)
    refused = env.run(str(env.python), "-m", "pip", "install", "--no-deps", str(other))
    if refused.returncode == 0 or "is not a supported wheel on this platform" not in refused.stdout:
        sys.exit(f"{other.name} should be refused:\n{refused.stdout}")
    done(f"{other.name} is refused: {refused.stdout.strip().splitlines()[-1]}")


def check_second_torch(wheel: Path, torch: str) -> None:
    with environment() as env:
        env.pip("install", "--quiet", torch, "numpy")
        env.pip("install", "--quiet", str(wheel))
        print(env.check(str(env.python), "-c", OPS).strip())
        print(env.check(str(env.python.with_name("softdiff")), "doctor"))
        done(f"the same wheel works beside {torch}")


def check_sdist(sdist: Path) -> None:
    """Rule: the sdist builds in isolation, hence without torch, both with and without nvcc."""

    native, cuda = {"SOFTDIFF_BUILD": "native"}, {"SOFTDIFF_CUDA": "1", "SOFTDIFF_CUDA_ARCHS": "90"}
    cases: list[tuple[str, tuple[str, ...], dict[str, str]]] = [("no nvcc", BUILD_TOOLS, native)]
    if shutil.which("nvcc"):
        cases.append(("nvcc", (*BUILD_TOOLS, "nvcc"), {**native, **cuda}))
    for name, tools, switches in cases:
        with environment(tools) as env:
            out = env.folder / "out"
            env.pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(sdist), **switches)
            (wheel,) = out.glob("*.whl")
            built = record(wheel)
            if built["native"] is not True or built["cuda"] is not (name == "nvcc"):
                sys.exit(f"the sdist built with {name} has the record {built}")
            done(f"the sdist builds with {name}: {built}")


def newest(pattern: str) -> Path:
    found = sorted((ROOT / "dist").glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        sys.exit(f"no dist/{pattern}: run make wheel first")
    return found[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Test a wheel in clean environments.")
    parser.add_argument("--wheel", type=Path, help="by default the newest in dist/")
    parser.add_argument("--torch", default="torch==2.13.0", help="the requirement to test beside")
    parser.add_argument("--second-torch", help="another one, for the import and a few ops alone")
    parser.add_argument("--sdist", action="store_true", help="build dist's sdist, too, with and without nvcc")
    parser.add_argument(
        "--tests", nargs="+", default=["tests"], help="fewer, e.g. tests/commands/test_cli.py"
    )
    options = parser.parse_args()
    wheel = (options.wheel or newest("*.whl")).resolve()
    check_install(wheel, options.torch, options.tests)
    if options.second_torch:
        check_second_torch(wheel, options.second_torch)
    if options.sdist:
        check_sdist(newest("*.tar.gz"))


if __name__ == "__main__":
    main()
