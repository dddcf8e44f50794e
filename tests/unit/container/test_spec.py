from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanoagent.common.units import MIB
from nanoagent.container.spec import SECCOMP_PROFILES, ContainerSpec, Limits, create_body
from nanoagent.model.job import Runtime
from nanoagent.model.result import Isolation

SPEC = ContainerSpec(
    runtime=Runtime.PYTHON,
    image="image",
    name="name",
    worker_id="worker",
    home=Path("/tasks/worker"),
    work_directory=Path("/tasks/worker/slots/one"),
    uid=1_900_000_007,
    memory_mb=128,
    cpus=0.5,
    limits=Limits(processes=64, tmp_bytes=10, work_bytes=20, output_bytes=30, inodes=40, shm_bytes=50),
)
BODY = create_body(SPEC)
HOST = BODY["HostConfig"]
SECCOMP_PROFILE = SECCOMP_PROFILES[Isolation.SHARED]
RULES = json.loads(SECCOMP_PROFILE)["syscalls"]
ALLOWED = {name for rule in RULES if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
# clone(2), unshare(2): CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET | NEWTIME;
# the last is a signal number's bit for clone and only unshare and clone3 know it.
NEW_NAMESPACES = 0x7E02_0000


def test_the_network_is_off_in_the_create_call():
    assert BODY["NetworkDisabled"] is True


def test_all_capabilities_are_dropped_and_none_can_be_gained():
    assert HOST["CapDrop"] == ["ALL"]
    assert "CapAdd" not in HOST
    assert HOST["Privileged"] is False
    assert "no-new-privileges" in HOST["SecurityOpt"]


def test_a_container_has_its_own_ordinary_user():
    assert BODY["User"] == "1900000007:1900000007"


def test_our_own_seccomp_profile_is_used():
    assert f"seccomp={SECCOMP_PROFILE}" in HOST["SecurityOpt"]


def test_the_root_is_read_only():
    assert HOST["ReadonlyRootfs"] is True


def bound(name: str, target: str) -> dict[str, Any]:
    source = f"/tasks/worker/slots/one{name}"
    return {"Type": "bind", "Source": source, "Target": target, "ReadOnly": True}


def test_the_only_path_of_the_host_is_the_read_only_work_directory():
    of_all = [bound("", "/slot"), bound("/hosts", "/etc/hosts")]
    assert SANDBOX_HOST["Mounts"] == of_all
    # A sandbox's user has a name in the image, any other gets one.
    assert HOST["Mounts"] == [*of_all, bound("/passwd", "/etc/passwd"), bound("/group", "/etc/group")]
    assert not {"Binds", "VolumesFrom", "Devices"} & HOST.keys()


def test_memory_is_limited_and_swap_is_none():
    assert HOST["Memory"] == HOST["MemorySwap"] >= 128 * MIB


def test_cpu_and_processes_are_limited():
    assert HOST["CpuQuota"] / HOST["CpuPeriod"] == 0.5
    assert HOST["CpuShares"] == 512
    assert HOST["PidsLimit"] == 71


@pytest.mark.parametrize(("place", "size"), [("/tmp", 10), ("/work", 20), ("/output", 30), ("/dev/shm", 50)])
def test_a_writable_folder_is_a_small_tmpfs_limited_in_bytes_and_files(place, size):
    options = HOST["Tmpfs"][place].split(",")
    assert {f"size={size}", "nr_inodes=40", "nosuid", "nodev", "mode=1777", "exec"} <= set(options)


def test_every_writable_folder_has_a_limit():
    assert all("size=" in options and "nr_inodes=" in options for options in HOST["Tmpfs"].values())
    assert set(HOST["Tmpfs"]) == {"/work", "/tmp", "/output", "/input", "/dev/shm"}


def test_nothing_is_logged_restarted_or_shared():
    assert HOST["LogConfig"] == {"Type": "none"}
    assert HOST["RestartPolicy"] == {"Name": "no"}
    assert (HOST["IpcMode"], HOST["CgroupnsMode"]) == ("private", "private")
    assert not {"PidMode", "UTSMode", "UsernsMode", "NetworkMode"} & HOST.keys()
    assert BODY["Env"] == []


def test_docker_chooses_the_runtime_unless_one_is_asked_for():
    assert "Runtime" not in HOST
    body = create_body(replace(SPEC, docker_runtime="runsc"))
    assert body["HostConfig"] == HOST | {"Runtime": "runsc"}


def test_the_container_names_its_worker():
    assert BODY["Labels"] == {
        "nanoagent.worker": "worker",
        "nanoagent.home": "/tasks/worker",
        "nanoagent.runtime": "python",
    }


def test_the_body_is_json():
    assert json.loads(json.dumps(BODY)) == BODY


# --- what a sandbox for each run takes

SANDBOX_BODY = create_body(replace(SPEC, isolation=Isolation.SANDBOX, apparmor="ours"))
SANDBOX_HOST = SANDBOX_BODY["HostConfig"]
SANDBOX_RULES = json.loads(SECCOMP_PROFILES[Isolation.SANDBOX])["syscalls"]
CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWCGROUP = 0x1000_0000, 0x2_0000, 0x200_0000


def test_a_sandbox_takes_a_visible_proc_a_profile_and_six_more_calls_and_nothing_else():
    differing = {
        name for name in HOST.keys() | SANDBOX_HOST.keys() if HOST.get(name) != SANDBOX_HOST.get(name)
    }
    assert differing == {"SecurityOpt", "MaskedPaths", "ReadonlyPaths", "Mounts"}
    assert (SANDBOX_HOST["MaskedPaths"], SANDBOX_HOST["ReadonlyPaths"]) == ([], [])
    assert set(SANDBOX_HOST["SecurityOpt"]) == {
        "no-new-privileges",
        f"seccomp={SECCOMP_PROFILES[Isolation.SANDBOX]}",
        "apparmor=ours",
    }


def test_the_profile_is_widened_by_six_calls_each_with_its_reason():
    added = [rule for rule in SANDBOX_RULES if rule not in RULES]
    assert SANDBOX_RULES[: len(RULES)] == RULES
    assert sorted(name for rule in added for name in rule["names"]) == [
        "clone",
        "mount",
        "sethostname",
        "setns",
        "socket",
        "unshare",
    ]
    assert all(len(rule["comment"]) > 40 for rule in added)


def test_a_sandbox_gets_only_the_route_protocol_of_netlink():
    (rule,) = [rule for rule in SANDBOX_RULES if rule not in RULES and rule["names"] == ["socket"]]
    arguments = [(argument["index"], argument["op"], argument["value"]) for argument in rule["args"]]
    assert arguments == [(0, "SCMP_CMP_EQ", socket.AF_NETLINK), (2, "SCMP_CMP_EQ", 0)]


def test_unshare_makes_nothing_but_the_supervisors_own_namespaces():
    (rule,) = [rule for rule in SANDBOX_RULES if rule["names"] == ["unshare"]]
    (argument,) = rule["args"]
    assert (argument["op"], argument["valueTwo"]) == ("SCMP_CMP_MASKED_EQ", 0)
    assert argument["value"] == 2**64 - 1 - (CLONE_NEWUSER | CLONE_NEWNS)


def test_clone_makes_no_cgroup_namespace_for_a_sandbox_either():
    rules = [rule for rule in SANDBOX_RULES if rule["names"] == ["clone"]]
    assert all(argument["value"] & CLONE_NEWCGROUP for rule in rules for argument in rule["args"])


def test_docker_keeps_masking_proc_where_there_is_no_sandbox():
    assert not {"MaskedPaths", "ReadonlyPaths"} & HOST.keys()


# --- the seccomp profile


def test_what_is_not_named_is_refused():
    assert json.loads(SECCOMP_PROFILE)["defaultAction"] == "SCMP_ACT_ERRNO"


def test_there_are_no_calls_of_other_architectures():
    assert all(not entry["subArchitectures"] for entry in json.loads(SECCOMP_PROFILE)["archMap"])


@pytest.mark.parametrize(
    "call",
    """
    mount umount umount2 pivot_root chroot move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr
    unshare setns clone3 ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd
    keyctl add_key request_key bpf perf_event_open userfaultfd
    io_uring_setup io_uring_enter io_uring_register io_setup io_submit
    init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct
    open_by_handle_at name_to_handle_at fanotify_init lookup_dcookie quotactl nfsservctl
    sethostname setdomainname settimeofday clock_settime stime iopl ioperm syslog vhangup
    move_pages migrate_pages memfd_secret socketcall ipc vm86 vm86old uselib ustat sysfs
    """.split(),  # noqa: SIM905 - a table of names
)
def test_a_dangerous_call_is_not_allowed(call):
    assert call not in ALLOWED


def rules_of(call: str) -> list[dict[str, Any]]:
    return [rule for rule in RULES if call in rule["names"]]


def test_clone_makes_processes_but_no_namespaces():
    (rule,) = rules_of("clone")
    (argument,) = rule["args"]
    assert (argument["index"], argument["op"], argument["valueTwo"]) == (0, "SCMP_CMP_MASKED_EQ", 0)
    assert argument["value"] & NEW_NAMESPACES == NEW_NAMESPACES


def test_clone3_is_said_not_to_exist_so_that_libraries_fall_back():
    (rule,) = rules_of("clone3")
    assert (rule["action"], rule["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)


def test_only_three_families_of_sockets_can_be_opened():
    arguments = [rule["args"] for rule in rules_of("socket")]
    assert {argument[0]["value"] for argument in arguments} == {1, 2, 10}  # UNIX, INET, INET6
    assert all(argument[0]["index"] == 0 and argument[0]["op"] == "SCMP_CMP_EQ" for argument in arguments)


@pytest.mark.parametrize("family", [2, 10], ids=["INET", "INET6"])
def test_of_the_internets_protocols_tcp_and_udp_alone_can_be_opened(family):
    rules = [rule["args"][1:] for rule in rules_of("socket") if rule["args"][0]["value"] == family]
    kinds = [(kind["index"], kind["op"], kind["value"], kind["valueTwo"]) for kind, _ in rules]
    assert set(kinds) == {(1, "SCMP_CMP_MASKED_EQ", 0b1100, 0)}  # STREAM, DGRAM, RAW
    protocols = [(protocol["index"], protocol["op"], protocol["value"]) for _, protocol in rules]
    assert sorted(protocols) == [(2, "SCMP_CMP_EQ", number) for number in (0, 6, 17)]


def test_no_call_is_allowed_both_with_and_without_conditions():
    plain = {name for rule in RULES if not rule.get("args") for name in rule["names"]}
    conditional = {name for rule in RULES if rule.get("args") for name in rule["names"]}
    assert not plain & conditional
