"""What a command in a sandbox can do to its machine, in both backends: with a protection taken away it can."""

import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from commands import skip_without_sandbox

from data_prep import InputError
from data_prep.environments.checkout import make_repository
from data_prep.environments.sandbox.base import Image, Limits, Mount, Sandbox, SandboxFailed, Session
from data_prep.environments.sandbox.bubblewrap import BubblewrapSandbox
from data_prep.environments.sandbox.cgroups import Cgroup, sweep
from data_prep.environments.sandbox.confined import run_confined
from data_prep.environments.sandbox.oci import OciSandbox
from data_prep.environments.sandbox.registry import SANDBOXES, open_sandbox

LIMITS = Limits(seconds=30, memory_bytes=256 << 20, processes=64, file_bytes=32 << 20, disk_bytes=64 << 20)
WIDER = Limits(seconds=60, memory_bytes=768 << 20, processes=300, file_bytes=64 << 20, disk_bytes=128 << 20)
FORKS = """
import os, sys, time
made = 0
for _ in range(1000):
    try:
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
    except OSError:
        break
    made += 1
print("made", made)
"""
MEMORY = """
held = []
for number in range(1, 100):
    held.append(b"x" * (16 << 20))
    print("MiB", 16 * number, flush=True)
"""
DISK = """
import time
for number in range(64):
    with open("/testbed/big%d" % number, "wb") as file:
        try:
            while file.tell() < 256 << 20:
                file.write(b"x" * (1 << 20))
        except OSError as error:
            print("refused at MiB", file.tell() >> 20, flush=True)
    print("file", number, flush=True)
    time.sleep(0.3)
"""


@pytest.fixture(params=["bubblewrap", "podman"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    skip_without_sandbox(Path("/tmp"))
    if request.param == "podman" and shutil.which("podman") is None:
        pytest.skip("podman is not installed")
    return SANDBOXES.get(request.param)()


@pytest.fixture
def image(tmp_path: Path) -> Image:
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "a.py").write_text("x = 1\n")
    (tree / "inner" / "b.txt").write_text("b\n")
    (tree / "inner" / "c.txt").write_text("c\n")
    make_repository(tree, "2024-01-01T00:00:00+00:00")
    return Image(tree)


@pytest.fixture
def session(sandbox: Sandbox, image: Image, tmp_path: Path) -> Iterator[Session]:
    opened = sandbox.open(image, tmp_path / "state", LIMITS, "none")
    yield opened
    opened.close()
    assert not (tmp_path / "state").exists()


def shell(session: Session, script: str, seconds: float | None = None) -> str:
    return session.run(["/bin/bash", "-c", script], seconds=seconds).output


def test_changes_are_what_a_command_did_and_the_host_s_tree_stays(session: Session, image: Image) -> None:
    shell(session, "echo 'x = 2' > a.py; rm -r inner; mkdir inner; echo d > inner/d.txt; ln -s /etc/passwd link")
    patch = session.changes().decode()
    assert [line for line in patch.split("\n") if line[:1] in ("+", "-") and line[:3] not in ("+++", "---")] == [
        "-x = 1", "+x = 2", "-b", "-c", "+d", "+/etc/passwd",
    ]  # fmt: skip
    assert (image.tree / "a.py").read_text() == "x = 1\n" and (image.tree / "inner" / "b.txt").exists()
    fresh = image.tree.with_name("fresh")
    subprocess.run(["cp", "-a", image.tree, fresh], check=True)
    subprocess.run(["git", "-C", fresh, "apply", "-"], input=patch.encode(), check=True)
    assert sorted(path.name for path in (fresh / "inner").iterdir()) == ["d.txt"]


def test_what_cannot_be_read_is_no_part_of_a_patch(session: Session, tmp_path: Path) -> None:
    shell(session, "echo 1 > secret; chmod 000 secret; mkfifo pipe; mkdir shut; echo 2 > shut/x; chmod 000 shut")
    shell(session, "git init -q nested; echo 3 > nested/y; git -C nested add y; echo 'x = 2' > a.py")
    shell(session, "git -C nested -c user.name=a -c user.email=a@b commit -qm x")
    patch = session.changes()
    assert b"+x = 2" in patch and not any(name in patch for name in (b"secret", b"pipe", b"shut"))
    assert b"b/nested/y" in patch and b"Subproject" not in patch and b"aside" not in patch
    assert shell(session, "git -C nested log --oneline | wc -l").strip() == "1"  # its repository is where it was
    session.close()
    assert not (tmp_path / "state").exists()
    (tmp_path / "state").mkdir()  # for the fixture, which closes it once more


def test_bytes_of_every_kind_come_back_as_they_are(session: Session, image: Image) -> None:
    odd = bytes(range(256)) + b"\r\n\x0c\n"
    session.put({"/testbed/odd name\n.bin": odd, "/testbed/deep/er/file": b""})
    assert session.get("/testbed/odd name\n.bin") == odd and session.get("/testbed/deep/er/file") == b""
    assert session.get("/testbed/absent") is None and session.get("/testbed/inner") is None
    assert b"GIT binary patch" in session.changes()


def test_new_files_are_those_beside_the_commit_ignored_or_not(session: Session) -> None:
    shell(session, "echo '*.log' > .gitignore; mkdir out; echo 1 > out/a.log; echo 2 > 'b c'; echo 3 >> a.py")
    shell(session, "mkdir __pycache__; echo 4 > __pycache__/a.pyc; echo 5 > ./--help; ln -s /etc out/link")
    with tarfile.open(fileobj=io.BytesIO(session.new_files())) as made:
        assert sorted(made.getnames()) == ["--help", ".gitignore", "b c", "out/a.log", "out/link"]


def test_hooks_filters_and_monitors_of_a_stranger_s_git_do_not_run(
    session: Session, image: Image, tmp_path: Path
) -> None:
    trap = "printf '#!/bin/sh\\ntouch /testbed/ran\\n' > /testbed/trap; chmod +x /testbed/trap;"
    settings = ("core.fsmonitor", "filter.evil.clean", "diff.external", "diff.evil.textconv")
    for setting in settings:
        trap += f"git config {setting} /testbed/trap;"
    trap += "echo '* filter=evil diff=evil' > .gitattributes; git config core.hooksPath /testbed; echo 1 >> a.py"
    shell(session, trap)
    session.changes()
    assert session.get("/testbed/ran") is None
    shell(session, "git add -A; git diff > /dev/null")  # the trap has teeth
    assert session.get("/testbed/ran") is not None


def test_the_history_ends_at_the_base(session: Session) -> None:
    assert shell(session, "git log --all --oneline | wc -l").strip() == "1"
    assert (
        shell(session, "git tag; git remote; git stash list; git fsck --lost-found | grep -v '^notice'").strip() == ""
    )


def test_the_fix_is_not_there_to_be_shown(image: Image, sandbox: Sandbox, tmp_path: Path) -> None:
    """In a plain clone it is: an unreferenced commit too."""
    clone = tmp_path / "clone"
    subprocess.run(["cp", "-a", image.tree, clone], check=True)
    git = ["git", "-C", str(clone), "-c", "user.name=a", "-c", "user.email=a@b"]
    (clone / "a.py").write_text("x = 'fixed'\n")
    subprocess.run([*git, "commit", "-qam", "fix"], check=True)
    fix = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run([*git, "reset", "-q", "--hard", "HEAD~1"], check=True)
    seen = {}
    for name, tree in (("ours", image.tree), ("plain", clone)):
        opened = sandbox.open(Image(tree), tmp_path / name, LIMITS, "none")
        seen[name] = shell(opened, f"git show {fix} 2>&1; git cherry-pick {fix} 2>&1; cat a.py")
        opened.close()
    assert "fixed" in seen["plain"] and "fixed" not in seen["ours"]


def test_forks_are_contained_and_wider_limits_are_hit(sandbox: Sandbox, image: Image, tmp_path: Path) -> None:
    made = {}
    for name, limits in (("ours", LIMITS), ("wider", WIDER)):
        opened = sandbox.open(image, tmp_path / name, limits, "none")
        made[name] = int(shell(opened, f"python3 -c '{FORKS}'").split()[-1])
        opened.close()
    assert made["ours"] < LIMITS.processes < made["wider"] < WIDER.processes


def test_memory_is_contained_and_a_wider_limit_is_hit(sandbox: Sandbox, image: Image, tmp_path: Path) -> None:
    taken = {}
    for name, limits in (("ours", LIMITS), ("wider", WIDER)):
        opened = sandbox.open(image, tmp_path / name, limits, "none")
        result = opened.run(["python3", "-c", MEMORY])
        assert result.killed == "memory"
        taken[name] = int(result.output.split()[-1]) << 20
        opened.close()
    assert taken["ours"] <= LIMITS.memory_bytes < taken["wider"] <= WIDER.memory_bytes


def test_disk_is_contained_and_a_wider_limit_is_hit(sandbox: Sandbox, image: Image, tmp_path: Path) -> None:
    for name, limits in (("ours", LIMITS), ("wider", WIDER)):
        opened = sandbox.open(image, tmp_path / name, limits, "none")
        result = opened.run(["python3", "-c", DISK])
        assert result.killed == "disk"
        assert f"refused at MiB {limits.file_bytes >> 20}" in result.output
        opened.close()


def test_time_and_what_a_command_leaves_running_end_with_it(session: Session) -> None:
    result = session.run(["sleep", "60"], seconds=1.5)
    assert result.killed == "time" and result.timed_out and result.seconds < 15
    shell(session, "(sleep 1; touch /testbed/later) > /dev/null 2>&1 & disown")
    shell(session, "sleep 2")
    assert session.get("/testbed/later") is None


def test_both_ends_of_a_long_output_are_kept(sandbox: Sandbox, image: Image, tmp_path: Path) -> None:
    opened = sandbox.open(image, tmp_path / "state", replace(LIMITS, output_bytes=1000), "none")
    result = opened.run(["/bin/bash", "-c", "echo begin; yes | head -c 5000000; echo end"])
    opened.close()
    assert result.truncated and result.output.startswith("begin") and result.output.endswith("end\n")
    assert len(result.output) < 1200 and "4999010 bytes are left out" in result.output


def test_nothing_answers_without_a_network_and_packets_vanish_in_a_black_hole(
    sandbox: Sandbox, image: Image, tmp_path: Path
) -> None:
    """The host's own services neither: where the network is the host's they do answer."""
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=lambda: [server.accept() for _ in range(1)], daemon=True).start()
    script = "import socket,sys\ntry: socket.create_connection((sys.argv[1], int(sys.argv[2])), 2); print('answered')\n"
    script += "except OSError as error: print(type(error).__name__)"
    seen = {}
    for network in ("none", "black hole", "host"):
        opened = sandbox.open(image, tmp_path / network, LIMITS, network)
        port = str(server.getsockname()[1])
        asked = [("127.0.0.1", port), *([("192.0.2.1", "80")] if network != "host" else [])]
        seen[network] = [opened.run(["python3", "-c", script, *each]).output.strip() for each in asked]
        opened.close()
    server.close()
    assert seen["none"] == ["ConnectionRefusedError", "OSError"]
    assert seen["black hole"] == ["ConnectionRefusedError", "TimeoutError"]
    assert seen["host"] == ["answered"]


def test_no_secret_of_this_process_is_in_the_sandbox(
    session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("A_TOKEN", "secret-of-the-host")
    (tmp_path / "host-only").write_text("secret-of-the-host")
    asked = (
        "env; cat /proc/*/environ | tr '\\0' '\\n'; cat /proc/*/cmdline | tr '\\0' ' ';"
        "cat /etc/shadow; ls /root /home;"
        f"cat {tmp_path}/host-only; cat /proc/1/root{tmp_path}/host-only; cat /proc/self/mountinfo | cut -d' ' -f5"
    )
    said = shell(session, asked)
    assert "secret-of-the-host" not in said and "root:$" not in said


def test_pid_1_shows_what_bubblewrap_was_started_with(
    image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trap that the empty environment is against."""
    monkeypatch.setenv("A_TOKEN", "secret-of-the-host")
    opened = BubblewrapSandbox().open(image, tmp_path / "state", LIMITS, "none")
    words = opened.words(["cat", "/proc/1/environ"], {"PATH": "/usr/bin"}, ())
    at = words.index("--json-status-fd")
    plain = subprocess.run([*words[:at], *words[at + 2 :]], capture_output=True, env=dict(os.environ)).stdout
    opened.close()
    assert b"secret-of-the-host" in plain


def test_the_machine_cannot_be_written_to(session: Session) -> None:
    for place in ("/usr", "/etc", "/bin", "/", "/proc/sys/kernel", "/sys"):
        assert "Read-only" in (said := shell(session, f"touch {place}/x 2>&1")) or "denied" in said or "No such" in said
    for escape in ("mount -t tmpfs none /mnt", "unshare -Ur true", "mknod /tmp/d b 8 0", "chroot /tmp"):
        assert session.run(["/bin/bash", "-c", f"{escape} 2>/dev/null"]).returncode != 0, escape


def test_an_environment_cannot_be_poisoned_but_where_it_is_writable(
    sandbox: Sandbox, image: Image, tmp_path: Path
) -> None:
    venv = tmp_path / "venv"
    for name, writable in (("ours", False), ("writable", True)):
        venv.mkdir(exist_ok=True)
        opened = sandbox.open(replace(image, mounts=(Mount(venv, "/venv", writable),)), tmp_path / name, LIMITS, "none")
        shell(opened, "echo 'import evil' > /venv/evil.pth")
        opened.close()
        assert (venv / "evil.pth").exists() == writable


def test_a_group_of_a_killed_command_is_swept_away(tmp_path: Path) -> None:
    script = (
        "from data_prep.environments.sandbox.cgroups import Cgroup\n"
        "from data_prep.environments.sandbox.base import Limits\n"
        "import os\ngroup = Cgroup(Limits())\nprint(*group.entrances)\nos._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    entrances = [Path(each) for each in done.stdout.split()]
    if not entrances:
        pytest.skip("control groups cannot be made here")
    assert all(entrance.exists() for entrance in entrances)
    sweep()
    assert not any(entrance.exists() for entrance in entrances)


def test_what_is_missing_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cgroup, "_limited", lambda self, path, kind, limit: False)
    with pytest.raises(InputError, match="bubblewrap has no memory limit here"):
        open_sandbox("bubblewrap", tmp_path, "none")
    with pytest.raises(InputError, match="has no pids limit here"):
        open_sandbox("bubblewrap", tmp_path, "none", ("memory limit",))
    open_sandbox("bubblewrap", tmp_path, "none", ("memory limit", "pids limit"))
    with pytest.raises(InputError, match="--without wings"):
        open_sandbox("bubblewrap", tmp_path, "none", ("wings",))
    with pytest.raises(InputError, match="sandbox 'chroot' is unknown"):
        open_sandbox("chroot", tmp_path, "none")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "podman is not installed" in OciSandbox("podman").capabilities(tmp_path)["sandbox"]


def test_a_program_that_is_not_there_is_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(SandboxFailed, match="is not there"):
        run_confined(["/nowhere/bwrap"], LIMITS, tmp_path)


def test_a_sandbox_that_cannot_be_made_is_no_result(image: Image, tmp_path: Path) -> None:
    """Its own exit status is 1, which a command's may be as well."""
    absent = Mount(tmp_path / "absent", "/absent")
    opened = BubblewrapSandbox().open(replace(image, mounts=(absent,)), tmp_path / "state", LIMITS, "none")
    with pytest.raises(SandboxFailed, match="Can't find source path"):
        opened.run(["/bin/true"])
    opened.close()
    opened = BubblewrapSandbox().open(image, tmp_path / "state", LIMITS, "none")
    assert opened.run(["/bin/bash", "-c", "echo bwrap: no; exit 1"]).returncode == 1
    opened.close()


def test_without_overlays_a_tree_is_copied(image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BubblewrapSandbox, "why_no_overlay", lambda self, directory: "an older bubblewrap")
    opened = BubblewrapSandbox().open(image, tmp_path / "state", LIMITS, "none")
    shell(opened, "echo 'x = 2' > a.py")
    assert b"+x = 2" in opened.changes() and (image.tree / "a.py").read_text() == "x = 1\n"
    opened.close()


def container_image(folder: Path) -> str:
    """An image that holds a shell, cat, and a file that this machine has not."""
    root = folder / "root"
    for name in ("bin", "testbed", "tmp", "proc", "dev", "etc"):
        (root / name).mkdir(parents=True)
    for program in ("dash", "cat"):
        listed = subprocess.run(["ldd", shutil.which(program) or program], capture_output=True, text=True, check=True)
        libraries = [word for word in listed.stdout.split() if word.startswith("/")]
        for file in libraries:
            (root / file[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, root / file[1:])
        shutil.copy(shutil.which(program) or program, root / "bin" / program)
    (root / "bin" / "sh").symlink_to("dash")
    (root / "of-the-image").write_text("here")
    packed = subprocess.run(["tar", "-c", "-C", root, "."], capture_output=True, check=True).stdout
    name = "localhost/davinci-test"
    subprocess.run([*OciSandbox("podman").command, "import", "-", name], input=packed, capture_output=True, check=True)
    return name


def test_an_image_of_a_container_runs_under_podman_alone(image: Image, tmp_path: Path) -> None:
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed")
    podman = OciSandbox("podman")
    with pytest.raises(InputError, match="use --sandbox podman"):
        BubblewrapSandbox().open(replace(image, container="localhost/x"), tmp_path / "b", LIMITS, "none")
    opened = podman.open(replace(image, container="localhost/absent"), tmp_path / "p", LIMITS, "none")
    with pytest.raises(SandboxFailed, match="image not known"):
        opened.run(["/bin/true"])
    opened.close()
    own = replace(image, container=container_image(tmp_path))
    opened = podman.open(own, tmp_path / "own", LIMITS, "none")
    assert opened.run(["sh", "-c", "cat /of-the-image a.py; echo 'x = 2' > a.py"]).output == "herex = 1\n"
    assert b"+x = 2" in opened.changes()  # by this machine's git: an image need not have one
    opened.close()
