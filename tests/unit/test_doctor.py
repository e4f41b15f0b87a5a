"""Property: on a machine with each thing broken on purpose, the doctor names it and what to do."""

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from megatron_davinci.doctor import machine, packages
from megatron_davinci.doctor.finding import Finding

DAVINCI = [sys.executable, "-c", "from megatron_davinci.cli import main; main()"]


def broken(finding: Finding, state: str, said: str, remedy: str) -> None:
    assert finding.state == state and said in finding.said and remedy in finding.remedy, finding


def test_megatron_of_another_version_or_none() -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    broken(packages.check_megatron(absent), "warn", "davinci data works", "pip install '.[train]'")
    for version in ("0.15.0", "0.20.0", "1.0"):
        broken(packages.check_megatron(lambda _, version=version: version), "fail", version, "megatron-core")
    broken(packages.check_megatron(lambda _: "0.17.1"), "warn", "0.17.1, with which the tests were not run", "pip")
    for version in ("0.16.1", "0.19.2"):
        assert packages.check_megatron(lambda _, version=version: version).state == "ok"


@pytest.mark.parametrize(
    ("version", "capability", "state"),
    [(91002, (9, 0), "warn"), (91002, (8, 0), "ok"), (91900, (9, 0), "ok"), (91002, None, "ok"), (None, None, "ok")],
)
def test_a_cudnn_that_is_wrong_on_this_gpu(
    monkeypatch: pytest.MonkeyPatch, version: int | None, capability: tuple[int, int] | None, state: str
) -> None:
    monkeypatch.setattr("torch.backends.cudnn.version", lambda: version)
    finding = packages.check_cudnn(capability)
    assert finding.state == state
    if state == "warn":
        broken(finding, "warn", "9.10.2: before 9.18 gradients of packed rows may be wrong", "2.11 has 9.19")


@pytest.mark.parametrize("real", [False, True])
def test_apex_of_nvidia_and_its_namesake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real: bool) -> None:
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").touch()
    if real:
        (tmp_path / "apex" / "optimizers").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = packages.check_apex()
    if real:
        assert finding.state == "ok" and "NVIDIA's" in finding.said
    else:
        broken(finding, "fail", "PyPI's apex is another project", "pip uninstall apex")


def test_transformer_engine_that_is_absent_or_does_not_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remedy = "pip install --no-build-isolation '.[gpu]'"
    broken(packages.check_transformer_engine(True, "this torch is old"), "fail", "and this torch is old", remedy)
    broken(packages.check_transformer_engine(gpu=True), "warn", "local layers train in its place", remedy)
    assert packages.check_transformer_engine(gpu=False).state == "ok"
    engine = tmp_path / "transformer_engine"
    engine.mkdir()
    (engine / "__init__.py").touch()
    (engine / "pytorch.py").write_text("raise OSError('undefined symbol: _ZN3c10')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = packages.check_transformer_engine(gpu=True)
    broken(finding, "fail", "does not import: undefined symbol", "--no-build-isolation")
    for name in [name for name in sys.modules if name.startswith("transformer_engine")]:
        del sys.modules[name]


def test_too_little_of_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1 << 30, "total": 64 << 20})
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage)
    broken(machine.check_disk(tmp_path), "warn", "1 GiB free", "make room")
    broken(machine.check_shared_memory(tmp_path), "fail", "0.06 GiB", "--shm-size")
    broken(machine.check_shared_memory(tmp_path / "absent"), "fail", "is absent", "mount")
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (256, 256))
    broken(machine.check_open_files(), "warn", "at most 256", "ulimit -n")
    monkeypatch.setenv("PATH", str(tmp_path))
    broken(machine.check_git(), "warn", "not on the path", "install it")
    assert "not on the path" in machine.check_slurm().said


def test_a_host_whose_name_nobody_knows() -> None:
    broken(machine.check_sockets("no-such-host.invalid"), "fail", "no-such-host.invalid", "/etc/hosts")


@pytest.mark.parametrize("cuda, remedy", [(None, "a CUDA build of torch"), ("13.0", "CUDA_VISIBLE_DEVICES")])
def test_a_driver_without_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: str | None, remedy: str) -> None:
    import torch

    (tmp_path / "nvidia-smi").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", cuda)
    broken(machine.check_gpu(), "fail", "there is a driver", remedy)


def examined(**environment: str) -> tuple[int, dict[str, dict[str, str]]]:
    done = subprocess.run(
        [*DAVINCI, "doctor", "--json"], capture_output=True, check=False, env={**os.environ, **environment}
    )
    return done.returncode, {finding["name"]: finding for finding in json.loads(done.stdout)}


def test_a_directory_that_is_still_to_be_made_lies_on_the_disk_of_its_nearest(tmp_path: Path) -> None:
    assert str(tmp_path / "runs" / "new") in machine.check_disk(tmp_path / "runs" / "new").said
    (tmp_path / "file").touch()
    broken(machine.check_disk(tmp_path / "file" / "runs"), "fail", "cannot be written to", "--directory")


def test_a_name_that_only_this_machine_reaches_is_a_warning() -> None:
    broken(machine.check_sockets("localhost"), "warn", "127.0.0.1, which no other node reaches", "/etc/hosts")


def test_this_machine_is_well_and_two_ranks_and_a_step_run_on_it() -> None:
    code, findings = examined()
    assert code == 0 and all(finding["state"] != "fail" for finding in findings.values()), findings
    assert "adds up" in findings["two ranks"]["said"]
    assert "equals its documents alone" in findings["packed attention"]["said"]


def test_what_does_not_import_is_named_and_the_rest_still_said(tmp_path: Path) -> None:
    """A torch with a missing library, an extension that is not built."""
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')\n")
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['data_prep._native'] = None\n")
    code, findings = examined(PYTHONPATH=str(tmp_path))
    assert code == 1 and "libcudart.so.13" in findings["torch"]["said"]
    assert findings["compiled extension"]["state"] == "fail" and "build it" in findings["compiled extension"]["remedy"]
    assert findings["sockets"]["state"] != "fail" and "two ranks" not in findings
