"""CPU counts and memory limits, read from trees of real files that look like a machine's /proc and /sys."""

from __future__ import annotations

import os

import pytest

from shoal._os import cgroup, cpus

V2_MOUNT = "30 20 0:26 {mounted} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw"


@pytest.fixture
def tree(tmp_path):
    """Returns a function that writes {path: text} below a fresh root and returns the root."""

    def write(files):
        for path, text in files.items():
            target = tmp_path / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text + "\n")
        return str(tmp_path)

    return write


def version_2(group, files, mounted="/"):
    proc = {"/proc/self/cgroup": f"0::{group}", "/proc/self/mountinfo": V2_MOUNT.format(mounted=mounted)}
    return proc | {f"/sys/fs/cgroup{path}": text for path, text in files.items()}


def version_1(controller, group, files, mounted="/"):
    mount = f"31 20 0:27 {mounted} /sys/fs/cgroup/{controller} rw - cgroup cgroup rw,{controller}"
    proc = {"/proc/self/cgroup": f"4:{controller}:{group}", "/proc/self/mountinfo": mount}
    return proc | {f"/sys/fs/cgroup/{controller}{path}": text for path, text in files.items()}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, None, id="no-control-groups"),
        pytest.param(version_2("/a", {"/a/cpu.max": "max 100000"}), None, id="no-limit"),
        pytest.param(version_2("/a", {"/a/cpu.max": "150000 100000"}), 1.5, id="own-group"),
        pytest.param(
            version_2("/a/b/c", {"/a/cpu.max": "50000 100000", "/a/b/c/cpu.max": "400000 100000"}),
            0.5,
            id="grandparent",
        ),
        pytest.param(version_2("/a/b", {"/cpu.max": "200000 100000", "/a/b/cpu.max": "max 100000"}), 2.0, id="the-top"),
        pytest.param(
            version_2("/docker/x", {"/cpu.max": "300000 100000"}, mounted="/docker/x"), 3.0, id="container-sees-itself"
        ),
        pytest.param(version_2("/../other", {"/cpu.max": "100000 100000"}), 1.0, id="group-outside-the-mount"),
        pytest.param(
            version_1("cpu", "/x", {"/x/cpu.cfs_quota_us": "-1", "/x/cpu.cfs_period_us": "100000"}), None, id="v1-none"
        ),
        pytest.param(
            version_1("cpu", "/x/y", {"/x/cpu.cfs_quota_us": "250000", "/x/cpu.cfs_period_us": "100000"}),
            2.5,
            id="v1-parent",
        ),
        pytest.param(version_2("/a", {"/a/cpu.max": "nonsense"}), None, id="unreadable-does-not-limit"),
    ],
)
def test_the_smallest_cpu_quota_on_the_way_up_binds(tree, files, expected):
    assert cpus.quota_cpus(tree(files)) == expected


@pytest.mark.parametrize(
    ("affinity", "quota", "expected"), [(8, None, 8), (8, 1.5, 2), (8, 0.1, 1), (2, 16.0, 2), (8, 2.0, 2), (8, 0.0, 1)]
)
def test_a_quota_is_rounded_up_and_never_exceeds_the_affinity(affinity, quota, expected):
    assert cpus.count(affinity, quota) == expected


def test_usable_cpus_is_affinity_cut_to_the_quota(tree):
    assert cpus.usable_cpus(tree({})) == len(os.sched_getaffinity(0))
    assert cpus.usable_cpus(tree(version_2("/a/b", {"/a/cpu.max": "10000 100000"}))) == 1
    assert 1 <= cpus.usable_cpus() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, None, id="no-control-groups"),
        pytest.param(version_2("/a", {"/a/memory.max": "max"}), None, id="no-limit"),
        pytest.param(version_2("/a/b", {"/a/memory.max": "1000", "/a/b/memory.max": "2000"}), 1000, id="parent"),
        pytest.param(
            version_1("memory", "/m", {"/m/memory.limit_in_bytes": "9223372036854771712"}), None, id="v1-none"
        ),
        pytest.param(
            version_1("memory", "/m", {"/m/memory.limit_in_bytes": "4096", "/memory.limit_in_bytes": "8192"}),
            4096,
            id="v1-own",
        ),
    ],
)
def test_the_smallest_memory_limit_on_the_way_up_binds(tree, files, expected):
    assert cgroup.memory_limit_bytes(tree(files)) == expected


def test_both_versions_side_by_side_are_read(tree):
    """A hybrid machine has its limits in version 1 and an empty version 2 beside it."""
    files = version_1(
        "memory", "/m", {"/m/memory.limit_in_bytes": "4096", "/m/memory.oom_control": "under_oom 0\noom_kill 3"}
    )
    files["/proc/self/cgroup"] += "\n0::/"
    files["/proc/self/mountinfo"] += "\n" + V2_MOUNT.format(mounted="/").replace("/cgroup rw", "/cgroup/unified rw")
    root = tree(files)
    assert cgroup.memory_limit_bytes(root) == 4096
    assert cgroup.oom_kill_count(root) == 3


def test_oom_kills_are_counted_in_our_own_group(tree):
    events = "low 0\nhigh 0\nmax 9\noom 2\noom_kill {}\noom_group_kill 0"
    files = version_2("/a/b", {"/a/memory.events": events.format(7), "/a/b/memory.events": events.format(2)})
    assert cgroup.oom_kill_count(tree(files)) == 2


def test_oom_kills_are_unknown_where_nobody_counts(tree):
    assert cgroup.oom_kill_count(tree(version_2("/", {}))) is None


def test_available_memory_is_what_the_tightest_group_leaves_with_droppable_cache(tree):
    files = version_2(
        "/a", {"/a/memory.max": "10000", "/a/memory.current": "7000", "/a/memory.stat": "anon 1\ninactive_file 2000"}
    )
    files["/proc/meminfo"] = "MemTotal:       200 kB\nMemFree: 5 kB\nMemAvailable:   100 kB"
    root = tree(files)
    assert cgroup.total_memory_bytes(root) == 200 * 1024
    assert cgroup.available_memory_bytes(root) == 5000


def test_this_machine_has_memory():
    assert 0 < cgroup.available_memory_bytes() <= cgroup.total_memory_bytes()


def test_a_mount_point_with_a_space_is_understood():
    line = r"30 20 0:26 / /mnt/my\040groups rw shared:4 - cgroup2 cgroup2 rw"
    assert cgroup.mounts(line) == {"": ("/", "/mnt/my groups")}
